"""A line that is long and thin: every byte comes later, and each connection has its own limit. A program of its own:
`python line.py PORT TARGET-PORT LATENCY-MS BYTES-PER-SECOND`."""

import asyncio
import sys

PIECE = 64 << 10
# What is on its way at most, in pieces: more than the line holds.
UNDER_WAY = 64


async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, latency: float, rate: float) -> None:
    """Moves bytes one way, each piece when the line has had the time for it."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)
    clock = asyncio.get_running_loop().time

    async def read() -> None:
        free = 0.0
        while True:
            piece = await source.read(PIECE)
            free = max(free, clock()) + len(piece) / rate
            await pieces.put((free + latency, piece))
            if not piece:
                return

    reading = asyncio.create_task(read())
    try:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not piece:
                target.write_eof()
                return
            target.write(piece)
            await target.drain()
    finally:
        reading.cancel()


async def main(port: int, target: int, latency: float, rate: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target, limit=4 * PIECE)
        ways = carry(reader, there_writer, latency, rate), carry(there_reader, writer, latency, rate)
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        there_writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", port, limit=4 * PIECE)
    await server.serve_forever()


if __name__ == "__main__":
    # Half of the time each way.
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 2000, float(sys.argv[4])))
