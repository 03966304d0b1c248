// Runs in a browser page, which sets `PUB`, `SUB`, `APP` and `TOPIC`: publishes and reads by WebSocket, says who it is by subprotocol.
const me = [`kateway.app.${APP}`, 'kateway.token.eyJhbGciOiJub25lIn0.e30.c2ln'];

const opened = (url, protocols) => new Promise((resolve, reject) => {
  const ws = new WebSocket(url, protocols);
  ws.binaryType = 'arraybuffer';
  ws.onopen = () => resolve(ws);
  ws.onerror = () => reject(new Error(`${url} was refused`));
});
const next = (ws) => new Promise((resolve) => { ws.onmessage = (event) => resolve(event.data); });
const closed = (ws) => new Promise((resolve) => { ws.onclose = (event) => resolve(event.code); });

const publisher = await opened(`ws://${PUB}/v1/ws/msgs/${TOPIC}/v1?key=k`, ['kateway.v1.bin', ...me]);
const count = 200;
for (let n = 0; n < count; n++) publisher.send(n % 2 ? new TextEncoder().encode(String(n)) : String(n));
while (JSON.parse(await next(publisher)).ack !== count);
const publisherClosed = closed(publisher);
publisher.close(1000);

const url = `ws://${SUB}/v1/ws/msgs/${APP}/${TOPIC}/v1?group=page&ack=1`;
const reader = await opened(url, ['kateway.v1.json', ...me]);
const values = [];
await new Promise((resolve) => {
  reader.onmessage = (event) => {
    const message = JSON.parse(event.data);
    values.push(message.value);
    if (values.length === count) {
      reader.send(JSON.stringify({ ack: [{ partition: message.partition, offset: message.offset }] }));
      resolve();
    }
  };
});
const readerClosed = closed(reader);
reader.close(1000);

await report({
  protocols: [publisher.protocol, reader.protocol],
  in_order: values.every((value, n) => value === String(n)),
  count: values.length,
  closed: [await publisherClosed, await readerClosed],
});
