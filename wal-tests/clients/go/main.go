// A round trip with gorqlite: wallaby-client-tests ADDRESS LEADER [PART ...]
//
// ADDRESS is the node to speak to, LEADER the one that leads (the same one if it is alone), both as
// host:port. PARTS are what to go through beyond statements: "queue". Credentials, if the node asks
// for them, are in the environment: RQLITE_USER, RQLITE_PASSWORD.
package main

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/rqlite/gorqlite"
	_ "github.com/rqlite/gorqlite/stdlib"
)

const name = "\u5f53 'quoted' \U0001f418"

// at is the URL of a node, with the credentials.
func at(address, query string) string {
	whole := url.URL{Scheme: "http", Host: address, Path: "/", RawQuery: query}
	if user := os.Getenv("RQLITE_USER"); user != "" {
		whole.User = url.UserPassword(user, os.Getenv("RQLITE_PASSWORD"))
	}
	return whole.String()
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func equal(what string, found, expected interface{}) {
	if !reflect.DeepEqual(found, expected) {
		panic(fmt.Sprintf("%s: found %#v, expected %#v", what, found, expected))
	}
}

// fails checks the error of one statement, as the client words it.
func fails(what string, err error, expected string) {
	expected = "there were 1 statement errors\n" + expected
	if err == nil || err.Error() != expected {
		panic(fmt.Sprintf("%s: found %v, expected %s", what, err, expected))
	}
}

func statement(query string, arguments ...interface{}) gorqlite.ParameterizedStatement {
	return gorqlite.ParameterizedStatement{Query: query, Arguments: arguments}
}

func count(conn *gorqlite.Connection, query string) (count int64) {
	result, err := conn.QueryOne(query)
	check(err)
	result.Next()
	check(result.Scan(&count))
	return count
}

func writing(conn *gorqlite.Connection) {
	_, err := conn.WriteOne("CREATE TABLE go (id INTEGER NOT NULL PRIMARY KEY, name TEXT UNIQUE, data BLOB, r REAL, b BOOLEAN, t DATETIME)")
	check(err)
	result, err := conn.WriteOne("INSERT INTO go(name) VALUES('fiona')")
	check(err)
	equal("counters", []int64{result.LastInsertID, result.RowsAffected}, []int64{1, 1})
	if result.Timing <= 0 {
		panic("no timing")
	}
	result, err = conn.WriteOneParameterized(statement(
		"INSERT INTO go(name, data, r, b, t) VALUES(?, ?, ?, ?, ?)",
		name, []int{0, 222, 173, 255}, 1e-7, true, "2024-02-29 23:59:58"))
	check(err)
	equal("key", result.LastInsertID, int64(2))
	result, err = conn.WriteOneParameterized(statement("UPDATE go SET r = ? WHERE id = ?", 2, 1))
	check(err)
	equal("rows", result.RowsAffected, int64(1))
}

func reading(conn *gorqlite.Connection, local bool) {
	levels := []string{"weak", "linearizable", "strong"}
	if local {
		levels = append(levels, "none")
	}
	for _, level := range levels {
		parsed, err := gorqlite.ParseConsistencyLevel(level)
		check(err)
		check(conn.SetConsistencyLevel(parsed))
		result, err := conn.QueryOneParameterized(statement("SELECT id, name, data, r, b, t FROM go WHERE id >= ? ORDER BY id", 1))
		check(err)
		equal("columns", result.Columns(), []string{"id", "name", "data", "r", "b", "t"})
		equal("types", result.Types(), []string{"integer", "text", "blob", "real", "boolean", "datetime"})
		equal("rows", result.NumRows(), int64(2))
		result.Next()
		found, err := result.Slice()
		check(err)
		equal("first row", found, []interface{}{1.0, "fiona", nil, 2.0, nil, nil})
		result.Next()
		found, err = result.Slice()
		check(err)
		moment := time.Date(2024, 2, 29, 23, 59, 58, 0, time.UTC)
		equal("second row", found, []interface{}{2.0, name, "AN6t/w==", 1e-7, true, moment})
	}
	check(conn.SetConsistencyLevel(gorqlite.ConsistencyLevelWeak))
	results, err := conn.Query([]string{"SELECT 1", "SELECT id FROM go WHERE id = -1"})
	check(err)
	equal("results", []int64{results[0].NumRows(), results[1].NumRows()}, []int64{1, 0})
}

func failing(conn *gorqlite.Connection) {
	_, err := conn.WriteOne("INSERT INTO go(name) VALUES('fiona')")
	fails("duplicate", err, "UNIQUE constraint failed: go.name")
	_, err = conn.WriteOne("INSERT blah blah")
	fails("syntax", err, `near "blah": syntax error`)
	_, err = conn.QueryOne("SELECT * FROM nowhere")
	fails("table", err, "no such table: nowhere")
	_, err = conn.QueryOne("DELETE FROM go")
	fails("write", err, "attempt to change database via query operation")
}

func together(conn *gorqlite.Connection) {
	// Several statements are one transaction unless the client is told otherwise.
	statements := []string{"INSERT INTO go(id) VALUES(60)", "INSERT INTO go(id) VALUES(1)", "INSERT INTO go(id) VALUES(61)"}
	results, err := conn.Write(statements)
	fails("transaction", err, "UNIQUE constraint failed: go.id")
	equal("results", len(results), 2)
	equal("rolled back", count(conn, "SELECT count(*) FROM go WHERE id >= 60"), int64(0))
	check(conn.SetExecutionWithTransaction(false))
	_, err = conn.Write(statements)
	fails("one by one", err, "UNIQUE constraint failed: go.id")
	equal("kept", count(conn, "SELECT count(*) FROM go WHERE id >= 60"), int64(2))
	check(conn.SetExecutionWithTransaction(true))
	mixed, err := conn.RequestParameterized([]gorqlite.ParameterizedStatement{
		statement("INSERT INTO go(id, name) VALUES(?, ?)", 70, "mixed"),
		statement("SELECT name FROM go WHERE id = ?", 70),
	})
	check(err)
	equal("written", mixed[0].Write.LastInsertID, int64(70))
	mixed[1].Query.Next()
	row, err := mixed[1].Query.Map()
	check(err)
	equal("read", row, map[string]interface{}{"name": "mixed"})
}

func cluster(address, leader string) {
	// By itself the client looks for the leader in /status and /nodes, and speaks to that.
	conn, err := gorqlite.Open(at(address, ""))
	check(err)
	defer conn.Close()
	found, err := conn.Leader()
	check(err)
	equal("leader", found, leader)
	peers, err := conn.Peers()
	check(err)
	expected := 3
	if address == leader {
		expected = 1
	}
	equal("peers", len(peers), expected)
	equal("through the leader", count(conn, "SELECT count(*) FROM go WHERE id = 1"), int64(1))
}

func standard(address string) {
	db, err := sql.Open("rqlite", at(address, "disableClusterDiscovery=true"))
	check(err)
	defer db.Close()
	result, err := db.Exec("INSERT INTO go(id, name) VALUES(?, ?)", 90, "standard")
	check(err)
	rows, err := result.RowsAffected()
	check(err)
	equal("rows", rows, int64(1))
	var text string
	check(db.QueryRow("SELECT name FROM go WHERE id = ?", 90).Scan(&text))
	equal("name", text, "standard")
	equal("no rows", db.QueryRow("SELECT name FROM go WHERE id = -1").Scan(&text), sql.ErrNoRows)
}

func credentials(address string) {
	wrong := "http://" + os.Getenv("RQLITE_USER") + ":wrong@" + address + "/?disableClusterDiscovery=true"
	conn, err := gorqlite.Open(wrong)
	check(err)
	_, err = conn.WriteOne("DELETE FROM go")
	if err == nil || !strings.Contains(err.Error(), "401 Unauthorized") {
		panic(fmt.Sprintf("a wrong password: %v", err))
	}
}

func queue(conn *gorqlite.Connection) {
	sequence, err := conn.Queue([]string{"INSERT INTO go(id) VALUES(100)", "INSERT INTO go(id) VALUES(101)"})
	check(err)
	if sequence <= 0 {
		panic("no sequence number")
	}
	// The client cannot ask to wait for the queue.
	for deadline := time.Now().Add(time.Minute); count(conn, "SELECT count(*) FROM go WHERE id >= 100") != 2; {
		if time.Now().After(deadline) {
			panic("the queued rows do not come")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func main() {
	address, leader := os.Args[1], os.Args[2]
	conn, err := gorqlite.Open(at(address, "disableClusterDiscovery=true&timeout=60"))
	check(err)
	defer conn.Close()
	writing(conn)
	reading(conn, address == leader)
	failing(conn)
	together(conn)
	cluster(address, leader)
	standard(address)
	steps := 6
	if os.Getenv("RQLITE_USER") != "" {
		credentials(address)
		steps++
	}
	for _, part := range os.Args[3:] {
		if part == "queue" {
			queue(conn)
			steps++
		}
	}
	fmt.Printf("ok: %d steps\n", steps)
}
