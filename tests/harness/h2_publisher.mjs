// Publishes over HTTP/2 until stdin ends: a few connections with a few streams each, one request at a time per stream.
//
// A connection that is told to go (GOAWAY) gets no further request, what runs on it is waited for, and a new one is made: as a client
// is to do by RFC 9113 section 6.8. A stream that crossed the GOAWAY is refused before anybody has looked at it (REFUSED_STREAM, often by
// Node itself), and its request goes to the next connection: section 8.7. Everything else that is no 201 is a failure, and nothing that
// may have been looked at is ever sent again. Last line: a JSON tally.
//
// node h2_publisher.mjs ADDRESS PATH APPID CONNECTIONS STREAMS
import http2 from 'node:http2'

const [address, path, appid, connections, streams] = process.argv.slice(2)
const tally = { answered: 0, connections: 0, goaways: 0, refused: 0, failures: {} }
let stopped = false
process.stdin.on('end', () => { stopped = true }).resume()

const fail = (what) => { tally.failures[what] = (tally.failures[what] ?? 0) + 1 }

function publish(session, leaving) {
  return new Promise((resolve) => {
    let status
    const request = session.request({ ':method': 'POST', ':path': path, appid })
    request.on('response', (headers) => { status = headers[':status'] })
    request.on('error', (error) => { status = error.code })
    request.on('close', () => {
      if (status === 201) tally.answered++
      else if (leaving() && request.rstCode === http2.constants.NGHTTP2_REFUSED_STREAM) tally.refused++
      else fail(`${status ?? 'no answer'} (${request.rstCode})`)
      resolve()
    })
    request.resume()
    request.end('x'.repeat(200))
  })
}

async function connection() {
  while (!stopped) {
    const session = http2.connect(`http://${address}`)
    tally.connections++
    let leaving = false
    session.on('goaway', () => { leaving = true; tally.goaways++ })
    session.on('error', (error) => { leaving = true; if (!stopped) fail(error.code) })
    const closed = new Promise((resolve) => session.on('close', resolve))
    session.on('close', () => { leaving = true })
    const lane = async () => { while (!stopped && !leaving && !session.closed) await publish(session, () => leaving) }
    await Promise.all(Array.from({ length: Number(streams) }, lane))
    session.close()
    await closed
  }
}

await Promise.all(Array.from({ length: Number(connections) }, connection))
console.log(JSON.stringify(tally))
