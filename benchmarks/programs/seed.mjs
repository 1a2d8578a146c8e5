// @platformatic/leader itself, from the folder that PLATFORMATIC_LEADER_DIR names, with its dependencies installed.

import { createSocket } from 'node:dgram'
import { createRequire } from 'node:module'
import { join } from 'node:path'

const { BENCH_DATABASE, BENCH_EAR, BENCH_NODE, BENCH_POLL, PLATFORMATIC_LEADER_DIR } = process.env
const require = createRequire(join(PLATFORMATIC_LEADER_DIR, 'package.json'))
const pg = require('pg')
const createLeaderElector = require(PLATFORMATIC_LEADER_DIR)

const socket = createSocket('udp4')

function tell (event) {
  // The clock that Python's `time.monotonic` reads.
  const at = Number(process.hrtime.bigint()) / 1e9
  socket.send(JSON.stringify({ event, node: BENCH_NODE, at }), Number(BENCH_EAR), '127.0.0.1')
}

const quiet = () => {}
const pool = new pg.Pool({ connectionString: BENCH_DATABASE })
pool.on('error', quiet)
// Without it the process would end with the leader's session.
pool.on('connect', (client) => client.on('error', quiet))

const elector = createLeaderElector({
  pool,
  lock: 4242,
  poll: Number(BENCH_POLL) * 1000,
  onLeadershipChange: (leads) => leads && tell('leads'),
  log: { debug: quiet, info: quiet, warn: quiet, error: quiet }
})

// As its README has it: stop() alone would not free the lock.
process.on('SIGTERM', async () => {
  await elector.stop()
  await pool.end()
  process.exit()
})

elector.start()
tell('ready')
