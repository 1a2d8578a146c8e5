// Listens on a channel and tells each payload, as a line that is a JSON string; sends what such lines of stdin hold
// there, with NOTIFY.

import { createInterface } from 'node:readline'
import pg from 'pg'

const [databaseUrl, channel] = process.argv.slice(2)
const client = new pg.Client({ connectionString: databaseUrl })
client.on('notification', ({ payload }) => console.log(JSON.stringify(payload)))
await client.connect()
await client.query(`listen ${client.escapeIdentifier(channel)}`)
console.log('"listening"')
for await (const line of createInterface({ input: process.stdin })) {
  await client.query(`notify ${client.escapeIdentifier(channel)}, ${client.escapeLiteral(JSON.parse(line))}`)
}
await client.end()
