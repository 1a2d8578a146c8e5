// The protocol that every member of a mixed fleet speaks, whatever it is written in: one JSON object a line.
// Facts go to stdout, commands come from stdin; see tests/support/elector_process.py for the Python side.

import { createInterface } from 'node:readline'

export function settings () {
  const env = process.env
  return {
    databaseUrl: env.FLEET_DATABASE_URL,
    name: env.FLEET_NAME,
    lock: env.FLEET_LOCK,
    channels: JSON.parse(env.FLEET_CHANNELS ?? '[]'),
    pollMilliseconds: Math.round(Number(env.FLEET_POLL_SECONDS ?? '10') * 1000)
  }
}

export function tell (fact) {
  process.stdout.write(JSON.stringify(fact) + '\n')
}

// Carries out commands until told to stop. A closed stdin means that whoever started this program is gone.
export async function obey (member) {
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line)
    if (command.notify) {
      try {
        await member.notify(command.notify.payload, command.notify.channel)
        tell({ event: 'notified' })
      } catch (error) {
        tell({ event: 'refused', reason: error.message })
      }
    } else if (command.stop) {
      break
    }
  }
  // An open stdin would keep the process alive.
  process.stdin.destroy()
  await member.stop()
  tell({ event: 'stopped' })
}
