// A member of a mixed fleet: one session lock by pg_try_advisory_lock(bigint), asked for at every poll; LISTEN once
// it is held; JSON payloads. This is all that a program has to keep to if it wants to share an election.

import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import { obey, settings, tell } from './protocol.mjs'

const RETRY_MILLISECONDS = 200

class Member {
  #settings
  #stopping = new AbortController()
  #standing
  #leads = false
  #sender

  constructor (settings) {
    this.#settings = settings
    this.#sender = new pg.Pool({ connectionString: settings.databaseUrl, max: 1 })
    // The pool drops a broken connection by itself; without a listener the error would end the process.
    this.#sender.on('error', complain)
  }

  start () {
    this.#standing = this.#stand()
  }

  async notify (payload, channel) {
    await this.#sender.query('select pg_notify($1, $2)', [channel, JSON.stringify(payload)])
  }

  async stop () {
    this.#stopping.abort()
    await this.#standing
    await this.#sender.end()
  }

  async #stand () {
    while (!this.#stopping.signal.aborted) {
      try {
        await this.#useSession()
      } catch (error) {
        complain(error)
      }
      this.#tellWhetherLeading(false)
      await this.#wait(RETRY_MILLISECONDS)
    }
  }

  // Polls in one session until that breaks, or until told to stop.
  async #useSession () {
    const { databaseUrl, name, lock, pollMilliseconds } = this.#settings
    const client = new pg.Client({ connectionString: databaseUrl, application_name: name })
    const broken = new AbortController()
    client.on('error', () => broken.abort())
    client.on('end', () => broken.abort())
    client.on('notification', receive)
    try {
      await client.connect()
      while (!this.#stopping.signal.aborted && !broken.signal.aborted) {
        // The holder does not ask again: session locks stack, and it would always be told yes.
        if (!this.#leads && await tryLock(client, lock)) {
          for (const channel of this.#settings.channels) {
            await client.query(`listen ${client.escapeIdentifier(channel)}`)
          }
          this.#tellWhetherLeading(true)
        }
        tellOnce('ready')
        await this.#wait(pollMilliseconds, broken.signal)
      }
      if (this.#leads && !broken.signal.aborted) {
        this.#tellWhetherLeading(false)
        await client.query('select pg_advisory_unlock($1::bigint)', [lock])
      }
    } finally {
      await client.end().catch(complain)
    }
  }

  #tellWhetherLeading (leads) {
    if (this.#leads !== leads) {
      this.#leads = leads
      tell({ event: 'leader', value: leads })
    }
  }

  async #wait (milliseconds, ...others) {
    const signal = AbortSignal.any([this.#stopping.signal, ...others])
    await pause(milliseconds, undefined, { signal }).catch(() => {})
  }
}

async function tryLock (client, lock) {
  const { rows } = await client.query('select pg_try_advisory_lock($1::bigint) as held', [lock])
  return rows[0].held
}

function receive ({ channel, payload }) {
  try {
    tell({ event: 'notification', channel, payload: JSON.parse(payload) })
  } catch (error) {
    complain(error)
  }
}

function complain (error) {
  console.error(error.message)
}

const told = new Set()

function tellOnce (event) {
  if (!told.has(event)) {
    told.add(event)
    tell({ event })
  }
}

const member = new Member(settings())
member.start()
await obey(member)
