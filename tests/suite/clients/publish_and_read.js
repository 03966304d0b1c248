// Publishes by WebSocket, reads by WebSocket, acknowledges. Run by ws_clients.rs: pub sub app topic count.
const WebSocket = require('ws');
const assert = require('assert');

const [pub, sub, app, topic] = process.argv.slice(2);
const count = Number(process.argv[6]);
const headers = { Appid: app };
const text = (data) => JSON.parse(data.toString());

function publish() {
  return new Promise((resolve, reject) => {
    const ws = new WebSocket(`ws://${pub}/v1/ws/msgs/${topic}/v1?key=k`, ['kateway.v1.bin'], { headers });
    ws.on('error', reject);
    ws.on('open', () => {
      assert.equal(ws.protocol, 'kateway.v1.bin');
      assert.equal(ws.extensions, '', 'compression was not agreed on');
      for (let n = 0; n < count; n++) ws.send(n % 2 ? Buffer.from(String(n)) : String(n));
    });
    ws.on('message', (data) => { if (text(data).ack === count) ws.close(1000); });
    ws.on('close', (code) => (code === 1000 ? resolve() : reject(new Error(`closed with ${code}`))));
  });
}

function read() {
  return new Promise((resolve, reject) => {
    const url = `ws://${sub}/v1/ws/msgs/${app}/${topic}/v1?group=js&ack=1`;
    const ws = new WebSocket(url, ['kateway.v1.json'], { headers });
    const got = [];
    ws.on('error', reject);
    ws.on('message', (data) => {
      const message = text(data);
      got.push(message.value);
      if (got.length === count) {
        ws.send(JSON.stringify({ ack: [{ partition: message.partition, offset: message.offset }] }));
        ws.ping('there?');
      }
    });
    ws.on('pong', (data) => { assert.equal(data.toString(), 'there?'); ws.close(1000); });
    ws.on('close', () => resolve(got));
  });
}

function refused() {
  return new Promise((resolve, reject) => {
    const ws = new WebSocket(`ws://${pub}/v1/ws/msgs/${topic}/v1`, ['mqtt'], { headers });
    ws.on('error', () => {});
    ws.on('open', () => reject(new Error('no subprotocol of ours was offered')));
    ws.on('unexpected-response', (request, response) => { resolve(response.statusCode); request.destroy(); });
  });
}

(async () => {
  await publish();
  assert.deepEqual(await read(), [...Array(count).keys()].map(String));
  assert.equal(await refused(), 400);
})().catch((error) => { console.error(error); process.exit(1); });
