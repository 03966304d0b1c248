"""Publishes by WebSocket, reads by WebSocket, acknowledges. Run by ws_clients.rs: pub sub app topic count."""
import asyncio, json, sys
from websockets.asyncio.client import connect

async def main(pub, sub, app, topic, count):
    headers = {"Appid": app}
    async with connect(f"ws://{pub}/v1/ws/msgs/{topic}/v1?key=k", additional_headers=headers,
                       subprotocols=["kateway.v1.bin"], compression="deflate") as ws:
        assert ws.subprotocol == "kateway.v1.bin", ws.subprotocol
        for n in range(count):
            await ws.send(str(n).encode() if n % 2 else str(n))
        # In fragments, as a generator is sent.
        await ws.send(iter(["frag", "men", "ted"]))
        while json.loads(await ws.recv())["ack"] != count + 1:
            pass
        await (await ws.ping(b"there?"))
    url = f"ws://{sub}/v1/ws/msgs/{app}/{topic}/v1?group=py&ack=1&credit=0"
    async with connect(url, additional_headers=headers, subprotocols=["kateway.v1.json"]) as ws:
        got = []
        while len(got) <= count:
            await ws.send(json.dumps({"credit": 50}))
            for _ in range(min(50, count + 1 - len(got))):
                got.append(json.loads(await ws.recv()))
            last = got[-1]
            await ws.send(json.dumps({"ack": [{"partition": last["partition"], "offset": last["offset"]}]}))
        assert [m["value"] for m in got] == [str(n) for n in range(count)] + ["fragmented"], got[-3:]
    async with connect(url, additional_headers=headers) as ws:
        await ws.send("no json")
        try:
            await ws.recv()
            raise AssertionError("it is closed")
        except Exception as error:
            assert error.rcvd.code == 1008, error

asyncio.run(main(*sys.argv[1:5], int(sys.argv[5])))
