// Runs in a browser page, which sets `PUB`, `SUB`, `APP` and `TOPIC`: publishes by fetch, reads server-sent events by fetch, gives the stream
// up in the middle, and goes on after the last event it had.
const count = 100;
const published = [];
for (let n = 0; n < count; n++) {
  const url = `http://${PUB}/v1/msgs/${TOPIC}/v1?key=k`;
  const answer = await fetch(url, { method: 'POST', headers: { Appid: APP }, body: String(n) });
  if (answer.status !== 201) throw new Error(`message ${n}: ${answer.status}`);
  published.push(Number(answer.headers.get('X-Offset')));
}

const url = `http://${SUB}/v1/msgs/${APP}/${TOPIC}/v1?group=page&stream=1`;
let type;

// Events after `lastEventId`, until the caller has enough of them.
async function* events(lastEventId) {
  const given = new AbortController();
  const headers = { Appid: APP, Accept: 'text/event-stream' };
  if (lastEventId) headers['Last-Event-ID'] = lastEventId;
  const answer = await fetch(url, { headers, signal: given.signal });
  if (answer.status !== 200) throw new Error(`${answer.status}: ${await answer.text()}`);
  type = answer.headers.get('Content-Type');
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const field = (line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1).trimStart()];
  let text = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error('the stream ended');
      text += value;
      for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
        const event = Object.fromEntries(text.slice(0, end).split('\n').map(field));
        if (event.data) yield { id: event.id, value: JSON.parse(event.data).value };
      }
    }
  } finally {
    given.abort();
  }
}

const values = [];
let last;
for (const enough of [40, count]) {
  for await (const event of events(last)) {
    values.push(event.value);
    last = event.id;
    if (values.length === enough) break;
  }
}
await report({ published, values, type });
