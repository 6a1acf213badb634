"""A round trip with pyrqlite, the DB-API client: dbapi.py ADDRESS LEADER [PART ...]

ADDRESS is the node to speak to, LEADER the one that leads (the same one if it is alone), both as
host:port. PARTS are what to go through beyond statements: "redirect", "queue". Credentials, if
the node asks for them, are in the environment: RQLITE_USER, RQLITE_PASSWORD.
"""

import datetime
import logging
import os
import sys

import pyrqlite.dbapi2 as dbapi

ADDRESS, LEADER = sys.argv[1:3]
PARTS = sys.argv[3:]
USER, PASSWORD = os.environ.get("RQLITE_USER"), os.environ.get("RQLITE_PASSWORD")


def connect(address=ADDRESS, password=PASSWORD, **options):
    host, port = address.rsplit(":", 1)
    return dbapi.connect(host=host, port=int(port), user=USER, password=password, timeout=60,
                         **options)


def equal(found, expected, what):
    assert found == expected, f"{what}: found {found!r}, expected {expected!r}"


def rows(connection, sql, parameters=None, **options):
    cursor = connection.cursor().execute(sql, parameters, **options)
    return [tuple(row) for row in cursor.fetchall()]


def failure(connection, sql):
    """The text with which a statement fails."""
    try:
        connection.cursor().execute(sql)
    except dbapi.Error as error:
        return str(error)
    raise AssertionError(f"succeeded: {sql}")


def tables(connection):
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE py (id INTEGER NOT NULL PRIMARY KEY, name TEXT UNIQUE, data BLOB)")
    equal(cursor.description, None, "description of CREATE")
    cursor.execute("CREATE TABLE py_types (i BIGINT, r REAL, b BOOL, d DATE, t TIMESTAMP, n NULL)")
    found = rows(connection, "PRAGMA table_info(py)")
    equal([(row[1], row[2], row[3], row[5]) for row in found],
          [("id", "INTEGER", 1, 1), ("name", "TEXT", 0, 0), ("data", "BLOB", 0, 0)], "table_info")


def writing(connection):
    cursor = connection.cursor()
    cursor.execute("INSERT INTO py(name, data) VALUES(?, ?)", ("fiona", b"\x00\xde\xad\xff"))
    equal(cursor.lastrowid, 1, "lastrowid")
    cursor.execute("INSERT INTO py(name, data) VALUES(:name, :data)",
                   {"name": "\u5f53 'quoted' \U0001f418", "data": None})
    equal(cursor.lastrowid, 2, "lastrowid")
    cursor.executemany("INSERT INTO py(name) VALUES(?)", [(f"many {i}",) for i in range(100)])
    equal(cursor.rowcount, 100, "rowcount of executemany")
    cursor.execute("UPDATE py SET name = name || '!' WHERE id > ?", (2,))
    equal(cursor.rowcount, 100, "rowcount of UPDATE")
    cursor.execute("DELETE FROM py WHERE id > 52")
    equal(cursor.rowcount, 50, "rowcount of DELETE")
    cursor.execute("UPDATE py SET name = 'nobody' WHERE id = -1")
    equal(cursor.rowcount, 0, "rowcount of an UPDATE that matches nothing")
    cursor.execute("INSERT INTO py(id, name) VALUES(99, 'returned') RETURNING id, name")
    equal(tuple(cursor.fetchone()), (99, "returned"), "RETURNING")


def reading(connection):
    for level in (None, "none", "weak", "linearizable", "strong"):
        if level == "none" and ADDRESS != LEADER:
            continue  # Local to a follower: true, and perhaps old.
        found = rows(connection, "SELECT id, name, data FROM py WHERE id < 3", consistency=level)
        equal(found, [(1, "fiona", b"\x00\xde\xad\xff"),
                      (2, "\u5f53 'quoted' \U0001f418", None)], f"rows at {level}")
    cursor = connection.cursor()
    cursor.execute("SELECT id, name FROM py WHERE id BETWEEN ? AND ? ORDER BY id", (3, 7))
    equal([column[0] for column in cursor.description], ["id", "name"], "description")
    equal(cursor.rowcount, 5, "rowcount of SELECT")
    first = cursor.fetchone()
    equal((first["id"], first["name"]), (3, "many 0!"), "by name")
    equal([row[0] for row in cursor.fetchmany(2)], [4, 5], "fetchmany")
    equal([row[0] for row in cursor], [6, 7], "the rest")
    equal(cursor.fetchone(), None, "after the end")
    equal(rows(connection, "SELECT id FROM py WHERE id = -1"), [], "no rows")
    equal(rows(connection, "SELECT count(*) FROM py"), [(53,)], "count")


def types(_):
    connection = connect(detect_types=dbapi.PARSE_DECLTYPES)
    big, day = 2**63 - 1, datetime.date(2024, 2, 29)
    moment = datetime.datetime(2024, 2, 29, 23, 59, 58, 120000)
    cursor = connection.cursor()
    cursor.execute("INSERT INTO py_types VALUES(?, ?, ?, ?, ?, ?)",
                   (big, 1e-7, True, day, moment, None))
    cursor.execute("INSERT INTO py_types VALUES(?, ?, ?, ?, ?, ?)",
                   (-big - 1, 1e21, False, None, None, None))
    found = rows(connection, "SELECT i, r, b, d, t, n FROM py_types ORDER BY i DESC")
    equal(found, [(big, 1e-7, True, day, moment, None),
                  (-big - 1, 1e21, False, None, None, None)], "types")
    equal([type(value) for value in found[0]],
          [int, float, bool, datetime.date, datetime.datetime, type(None)], "their classes")
    equal(rows(connection, "SELECT 1 + 1, 'a', NULL, 0.5"), [(2, "a", None, 0.5)], "expressions")


def errors(connection):
    for sql, expected in [
        ("INSERT INTO py(id) VALUES(1)", "UNIQUE constraint failed: py.id"),
        ("INSERT INTO nowhere VALUES(1)", "no such table: nowhere"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT * FROM", "incomplete input"),
        ("INSERT blah blah", 'near \\"blah\\": syntax error'),
    ]:
        assert expected in failure(connection, sql), f"{sql}: {failure(connection, sql)}"
    try:
        connection.cursor().execute("SELECT ?", ())
    except dbapi.ProgrammingError:
        pass
    else:
        raise AssertionError("a missing parameter was not noticed")


def transactions(connection):
    # pyrqlite sends executemany as one transaction, and logs its errors without raising them.
    cursor = connection.cursor()
    cursor.executemany("INSERT INTO py(id, name) VALUES(?, ?)",
                       [(200, "a"), (1, "taken"), (201, "b")])
    equal(rows(connection, "SELECT count(*) FROM py WHERE id >= 200"), [(0,)], "rolled back")
    cursor.executemany("INSERT INTO py(id, name) VALUES(?, ?)", [(200, "a"), (201, "b")])
    equal(rows(connection, "SELECT count(*) FROM py WHERE id >= 200"), [(2,)], "committed")
    # These mean nothing to rqlite and must not disturb.
    connection.commit()
    connection.rollback()
    connection.ping()


def credentials(_):
    for sql in ("SELECT 1", "DELETE FROM py"):
        text = failure(connect(password="wrong"), sql)
        equal(text, "received unexpected http status: 401", "a wrong password")


def redirects(connection):
    sql = '["INSERT INTO py(id, name) VALUES(300, \'redirected\')"]'
    headers = {"Content-Type": "application/json"}
    response = connection._fetch_response("POST", "/db/execute?redirect", sql, headers)
    equal((response.status, response.read()),
          (200, b'{"results":[{"last_insert_id":300,"rows_affected":1}]}'), "redirected write")
    equal(f"{connection.host}:{connection.port}", LEADER, "where the client ended")
    equal(rows(connection, "SELECT name FROM py WHERE id = 300"), [("redirected",)], "its row")


def queue(connection):
    cursor = connection.cursor()
    cursor.execute("INSERT INTO py(id, name) VALUES(400, 'queued')", queue=True, wait=True)
    cursor.executemany("INSERT INTO py(id, name) VALUES(?, ?)", [(401, "x"), (402, "y")],
                       queue=True, wait=True)
    equal(rows(connection, "SELECT count(*) FROM py WHERE id >= 400", consistency="strong"),
          [(3,)], "queued rows")


def main():
    logging.disable(logging.CRITICAL)
    steps = [tables, writing, reading, types, errors, transactions]
    steps += [credentials] if USER else []
    steps += [redirects] if "redirect" in PARTS else []
    steps += [queue] if "queue" in PARTS else []
    for step in steps:
        step(connect())
    # The same rows through the other node.
    equal(rows(connect(LEADER), "SELECT name FROM py WHERE id = 1"), [("fiona",)], "on the leader")
    print(f"ok: {len(steps)} steps")


main()
