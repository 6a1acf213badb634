// A write of unknown outcome is sent once: node unknown.js ADDRESS PID PID
//
// The client repeats what is answered with one of the statuses in its list, POST or not. This
// stops the other nodes of a cluster of three while writes through ADDRESS are on their way, until
// some are answered with "outcome unknown", and then looks whether any is there twice.
'use strict'

const assert = require('node:assert/strict')
const { setTimeout: sleep } = require('node:timers/promises')
const axios = require('axios')
const { DataApiClient } = require('rqlite-js')

const [ADDRESS, ...PIDS] = process.argv.slice(2)
const client = new DataApiClient(`http://${ADDRESS}`)
const signal = (name) => PIDS.forEach((pid) => process.kill(Number(pid), name))
const ROUNDS = 20

// What became of each write: 'acknowledged', or the text of its refusal.
const fates = new Map()

// Answers of unknown outcome, those that the client does not show included.
let unknown = 0
axios.interceptors.response.use(undefined, (error) => {
  unknown += JSON.stringify(error.response?.data ?? '').includes('outcome unknown') ? 1 : 0
  return Promise.reject(error)
})

async function write (name) {
  const sql = `INSERT INTO once(name) VALUES('${name}')`
  try {
    const { body } = await client.post('/db/execute?timeout=700ms', sql)
    assert.deepEqual(body.results[0].error, undefined)
    fates.set(name, 'acknowledged')
  } catch (error) {
    fates.set(name, JSON.stringify(error.response?.data ?? error.message))
  }
}

async function served () {
  for (;;) {
    const { body } = await client.get('/db/query', 'SELECT 1', { level: 'strong' }).catch(() => ({}))
    if (body?.results?.length === 1) {
      return
    }
    await sleep(100)
  }
}

async function main () {
  const created = await client.execute('CREATE TABLE once (name TEXT)')
  assert.equal(created.hasError(), false)
  for (let round = 0; round < ROUNDS && unknown === 0; round += 1) {
    // A chain of writes, so that one is on its way at whatever moment the others stop.
    let stopped = false
    const chain = async (lane) => {
      for (let i = 0; !stopped; i += 1) {
        await write(`${round}.${lane}.${i}`)
      }
    }
    const lanes = [0, 1, 2, 3].map(chain)
    await sleep(200)
    signal('SIGSTOP')
    try {
      stopped = true
      await sleep(1500)
    } finally {
      signal('SIGCONT')
    }
    await Promise.all(lanes)
    await served()
  }
  assert.ok(unknown > 0, `no write of unknown outcome in ${ROUNDS} rounds`)
  const { body } = await client.get('/db/query',
    'SELECT name, count(*) FROM once GROUP BY name', { level: 'strong' })
  const counts = new Map(body.results[0].values)
  for (const [name, count] of counts) {
    assert.equal(count, 1, `${name} is there ${count} times; its fate was: ${fates.get(name)}`)
  }
  for (const [name, fate] of fates) {
    assert.ok(fate !== 'acknowledged' || counts.has(name), `${name} was acknowledged and is lost`)
  }
  console.log(`ok: ${fates.size} writes, ${unknown} of unknown outcome`)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
