import socket
from concurrent.futures import ThreadPoolExecutor

from discovery.dns.pipe import Reader, Writer


def test_what_several_threads_write_arrives_whole() -> None:
    """A process logs from the threads that answer, and tells its counts from its loop."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(4) as pool:
        writer, reader = Writer(ours), Reader(theirs)
        theirs.settimeout(1)
        each = 2000
        writing = [
            pool.submit(lambda name=name: [writer.write((name, number)) for number in range(each)])
            for name in range(4)
        ]
        seen: list[tuple[int, int]] = []
        while len(seen) < 4 * each:
            seen += reader.read()
            assert not [future for future in writing if future.done() and future.exception()]
    for name in range(4):
        assert [number for of, number in seen if of == name] == list(range(each))
