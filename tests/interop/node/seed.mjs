// The same member, led by @platformatic/leader itself, from the folder that PLATFORMATIC_LEADER_DIR names (with its
// dependencies installed).

import { createRequire } from 'node:module'
import { join } from 'node:path'
import { obey, settings, tell } from './protocol.mjs'

const folder = process.env.PLATFORMATIC_LEADER_DIR
const require = createRequire(join(folder, 'package.json'))
const pg = require('pg')
const createLeaderElector = require(folder)

const { databaseUrl, name, lock, channels, pollMilliseconds } = settings()
const pool = new pg.Pool({ connectionString: databaseUrl, application_name: name })
pool.on('error', (error) => console.error(error.message))

// stdout belongs to the protocol, so its log goes to stderr.
const print = (...words) => console.error(...words)

const elector = createLeaderElector({
  pool,
  lock: Number(lock),
  poll: pollMilliseconds,
  channels: channels.map((channel) => ({
    channel,
    onNotification: (payload) => tell({ event: 'notification', channel, payload })
  })),
  onLeadershipChange: (leads) => tell({ event: 'leader', value: leads }),
  log: { debug: () => {}, info: print, warn: print, error: print }
})

elector.start()
tell({ event: 'ready' })
await obey({
  notify: elector.notify,
  stop: async () => {
    await elector.stop()
    await pool.end()
  }
})
