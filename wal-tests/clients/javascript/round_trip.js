// A round trip with rqlite-js: node round_trip.js ADDRESS LEADER [PART ...]
//
// ADDRESS is the node to speak to, LEADER the one that leads (the same one if it is alone), both
// as host:port. PARTS are what to go through beyond statements: "redirect", "queue", "backup",
// "load". Credentials, if the node asks for them, are in the environment: RQLITE_USER,
// RQLITE_PASSWORD.
'use strict'

const assert = require('node:assert/strict')
const { DataApiClient, StatusApiClient, BackupApiClient } = require('rqlite-js')

const [ADDRESS, LEADER, ...PARTS] = process.argv.slice(2)
const HOST = `http://${ADDRESS}`
const USER = process.env.RQLITE_USER
const authentication = USER && { username: USER, password: process.env.RQLITE_PASSWORD }
const client = new DataApiClient(HOST, { authentication })

async function execute (sql, options) {
  const results = await client.execute(sql, options)
  assert.equal(results.getFirstError(), undefined)
  return results
}

async function rows (sql, options) {
  const results = await client.query(sql, options)
  assert.equal(results.getFirstError(), undefined)
  return results.toArray()
}

async function failure (results) {
  assert.ok((await results).hasError(), 'succeeded')
  return (await results).getFirstError().message
}

async function writing () {
  await execute('CREATE TABLE js (id INTEGER NOT NULL PRIMARY KEY, name TEXT UNIQUE, data BLOB)')
  let results = await execute("INSERT INTO js(name) VALUES('fiona')")
  assert.equal(results.get(0).getLastInsertId(), 1)
  assert.equal(results.get(0).getRowsAffected(), 1)
  results = await execute([
    ['INSERT INTO js(name, data) VALUES(?, ?)', "\u5f53 'quoted' \u{1f418}", [0, 222, 173, 255]],
    ['INSERT INTO js(name, data) VALUES(:name, :data)', { name: null, data: "x'deadbeef'" }]
  ], { timings: true })
  assert.deepEqual(results.getResults().map((result) => result.getLastInsertId()), [2, 3])
  assert.ok(results.getTime() > 0 && results.get(0).getTime() > 0, 'timings')
  const { status, body } = await client.execute("UPDATE js SET name = 'n' WHERE id = 3", { raw: true })
  assert.equal(status, 200)
  assert.deepEqual(body, { results: [{ last_insert_id: 3, rows_affected: 1 }] })
}

async function reading () {
  const expected = [
    { id: 1, name: 'fiona', data: null },
    { id: 2, name: "\u5f53 'quoted' \u{1f418}", data: 'AN6t/w==' },
    { id: 3, name: 'n', data: '3q2+7w==' }
  ]
  const sql = 'SELECT id, name, data FROM js ORDER BY id'
  for (const level of [undefined, 'weak', 'linearizable', 'strong']) {
    assert.deepEqual(await rows(sql, { level }), expected)
  }
  if (ADDRESS === LEADER) {
    assert.deepEqual(await rows(sql, { level: 'none' }), expected)
  }
  assert.deepEqual(await rows(sql, { pretty: true, timings: true }), expected)
  const several = await client.query([
    ['SELECT name FROM js WHERE id = ?', 1], ['SELECT :a AS a, :b AS b', { a: 1.5, b: true }]
  ])
  assert.deepEqual(several.toArray(), [{ name: 'fiona' }, { a: 1.5, b: 1 }])
  assert.deepEqual(await rows("SELECT 'a&b=c#%+' AS t, 2 * 3 AS n"), [{ t: 'a&b=c#%+', n: 6 }])
  const none = await client.query('SELECT id FROM js WHERE id = -1')
  assert.equal(none.hasError(), false)
  assert.deepEqual(none.get(0).toObject(), {})
}

async function types () {
  await execute('CREATE TABLE js_types (i INTEGER, r REAL, b BOOLEAN, d DATE, t DATETIME)')
  await execute([[
    'INSERT INTO js_types VALUES(?, ?, ?, ?, ?)',
    Number.MAX_SAFE_INTEGER, 1e-7, true, '2024-02-29', '2024-02-29 23:59:58.12'
  ]])
  assert.deepEqual(await rows('SELECT * FROM js_types'), [{
    i: Number.MAX_SAFE_INTEGER, r: 1e-7, b: true, d: '2024-02-29T00:00:00Z', t: '2024-02-29T23:59:58.12Z'
  }])
}

async function errors () {
  assert.equal(await failure(client.execute("INSERT INTO js(name) VALUES('fiona')")),
    'UNIQUE constraint failed: js.name')
  assert.equal(await failure(client.execute('INSERT blah blah')), 'near "blah": syntax error')
  assert.equal(await failure(client.query('SELECT * FROM nowhere')), 'no such table: nowhere')
  assert.equal(await failure(client.query('DELETE FROM js')),
    'attempt to change database via query operation')
  // A refused request is an HTTP error, and this client does not repeat a 400.
  await assert.rejects(client.execute([]), (error) => error.response.status === 400)
}

async function transactions () {
  const statements = ["INSERT INTO js(id, name) VALUES(60, 'a')", "INSERT INTO js(name) VALUES('fiona')",
    "INSERT INTO js(id, name) VALUES(61, 'b')"]
  assert.equal(await failure(client.execute(statements, { transaction: true })),
    'UNIQUE constraint failed: js.name')
  assert.deepEqual(await rows('SELECT id FROM js WHERE id >= 60'), [{}])
  const results = await client.execute(statements)
  assert.deepEqual(results.getResults().map((result) => result.message), [undefined,
    'UNIQUE constraint failed: js.name', undefined])
  assert.deepEqual(await rows('SELECT id FROM js WHERE id >= 60'), [{ id: 60 }, { id: 61 }])
}

async function status () {
  const { body } = await new StatusApiClient(HOST, { authentication }).status()
  assert.equal(body.store.raft.state, ADDRESS === LEADER ? 'Leader' : 'Follower')
  assert.equal(body.store.ready, true)
  assert.equal(typeof body.build.version, 'string')
  const hosts = [ADDRESS, LEADER].map((address) => `http://${address}`)
  const answers = await new StatusApiClient(hosts, { authentication }).statusAllHosts()
  assert.deepEqual(answers.map((answer) => answer.host), hosts)
  assert.ok(answers.every((answer) => answer.response.status === 200))
}

async function severalHosts () {
  // A host that does not answer is skipped; the client learns nothing from that but to go on.
  const hosts = [`http://${ADDRESS}`, `http://${LEADER}`, 'http://127.0.0.1:1']
  const several = new DataApiClient(hosts, { authentication })
  for (let turn = 0; turn < hosts.length; turn += 1) {
    const results = await several.query('SELECT 1 AS one', { level: 'none' })
    assert.deepEqual(results.toArray(), [{ one: 1 }])
  }
}

async function credentials () {
  const wrong = { authentication: { username: USER, password: 'wrong' } }
  for (const options of [wrong, {}]) {
    const refused = new DataApiClient(HOST, options)
    const unauthorized = (error) => error.response.status === 401
    await assert.rejects(refused.query('SELECT 1'), unauthorized)
    await assert.rejects(refused.execute('DELETE FROM js'), unauthorized)
  }
}

async function redirects () {
  // The client sends no such parameter by itself any more, but still follows what it leads to. It
  // means to remember the leader then, and never does: it compares hosts path and all.
  const sql = "INSERT INTO js(id, name) VALUES(70, 'redirected')"
  const { status, body } = await client.post('/db/execute?redirect', sql, { useLeader: true })
  assert.deepEqual([status, body], [200, { results: [{ last_insert_id: 70, rows_affected: 1 }] }])
  assert.deepEqual(await rows('SELECT name FROM js WHERE id = 70'), [{ name: 'redirected' }])
}

async function queue () {
  const { body } = await client.post('/db/execute?queue&wait', "INSERT INTO js(id) VALUES(80)")
  assert.ok(body.sequence_number > 0)
  assert.deepEqual(await rows('SELECT id FROM js WHERE id = 80', { level: 'strong' }), [{ id: 80 }])
}

async function collected (stream) {
  const chunks = []
  for await (const chunk of stream) {
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

async function backup () {
  const api = new BackupApiClient(HOST, { authentication })
  const binary = await collected(await api.backup())
  assert.equal(binary.subarray(0, 16).toString('latin1'), 'SQLite format 3\0')
  const text = (await collected(await api.backup('sql'))).toString()
  assert.ok(text.includes("INSERT INTO \"js\" VALUES(1,'fiona',NULL);"), text)
}

async function load () {
  const api = new BackupApiClient(HOST, { authentication })
  const sql = "CREATE TABLE js_loaded (id INTEGER);\nINSERT INTO js_loaded VALUES(5);\n"
  const answer = JSON.parse(await collected(await api.load(sql)))
  assert.equal(answer.error, undefined)
  assert.equal(answer.results[0].error, undefined)
  assert.deepEqual(await rows('SELECT id FROM js_loaded'), [{ id: 5 }])
}

async function main () {
  const steps = [writing, reading, types, errors, transactions, status, severalHosts]
  const named = { redirect: redirects, queue, backup, load }
  if (USER) {
    steps.push(credentials)
  }
  for (const part of PARTS) {
    steps.push(named[part])
  }
  for (const step of steps) {
    await step()
  }
  const leader = new DataApiClient(`http://${LEADER}`, { authentication })
  const found = await leader.query('SELECT name FROM js WHERE id = 1')
  assert.deepEqual(found.toArray(), [{ name: 'fiona' }])
  console.log(`ok: ${steps.length} steps`)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
