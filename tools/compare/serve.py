#!/usr/bin/env python3
"""kiln serve under load: what becomes of requests, and the memory of the server.

    tools/compare/serve.py BUNDLE.kiln [QUEUE]

Starts target/release/kiln, and prints a Markdown table. Each row is a load on the same server:
requests and their answers, the answers of a well-behaved client meanwhile, and the peak of the
process (VmHWM) after it. Needs Python's standard library alone.
"""

import base64
import collections
import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

LEAST = {"prompt": "a red heart", "steps": 1, "guidance": 1, "sampler": "lcm"}
LONG = {"prompt": "a rocket", "steps": 500, "guidance": 1, "sampler": "euler"}


class Server:
    def __init__(self, bundle, queue):
        command = ["target/release/kiln", "serve", bundle, "--listen", "127.0.0.1:0"]
        command += ["--queue", queue]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            print(line, end="", file=sys.stderr)
            if line.startswith("listening on http://"):
                self.port = int(line.split()[2].rsplit(":", 1)[1])
                return
        raise SystemExit("the server ended")

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def connect(self, request=b""):
        stream = socket.create_connection(("127.0.0.1", self.port), timeout=600)
        stream.sendall(request)
        return stream

    def metric(self, name):
        for line in self.request("GET", "/metrics")[1].decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise SystemExit(name)

    def idle(self):
        """Waits until no job and no other connection is left."""
        while any(
            self.metric("kiln_" + name) > most
            for name, most in [("queue_jobs", 0), ("running_jobs", 0), ("connections", 1)]
        ):
            time.sleep(0.1)

    def memory(self):
        memory = json.loads(self.request("GET", "/v1/server")[1])["memory"]
        return memory["process_bytes"], memory["process_peak_bytes"], memory["total_bytes"]


def generation(fields):
    body = json.dumps(fields).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def together(count, body):
    """The results of `count` clients at once."""
    results = []
    threads = [threading.Thread(target=lambda k=k: results.append(body(k))) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return collections.Counter(results)


def clients(server):
    path = "/v1/images/generations"
    return together(200, lambda k: server.request("POST", path, {**LEAST, "seed": k})[0])


def noise(side):
    """A PNG file that cannot be packed."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + random.Random(y).randbytes(side * 3) for y in range(side))
    body = chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def uploads(server):
    body = {**LEAST, "init_image": base64.b64encode(noise(1400)).decode()}
    return together(50, lambda _: server.request("POST", "/v1/pictures", body)[0])


def slow(server):
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400
    held = []
    for _ in range(200):
        stream = server.connect()
        stream.setblocking(False)
        try:
            stream.send(request)
        except BlockingIOError:
            pass
        held.append(stream)
    return held


def half_open(server):
    return [server.connect(b"POST /v1/pictures HTTP/1.1\r\nHost: loc") for _ in range(200)]


def garbage(server):
    source = random.Random(7)

    def one(_):
        stream = server.connect()
        try:
            stream.sendall(source.randbytes(source.randrange(1, 50_000)))
            stream.shutdown(socket.SHUT_WR)
            answer = stream.recv(64)
        except OSError:
            return "closed"
        return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/") else "closed"

    return together(200, one)


def leaving(server):
    """Clients that leave after part of the head, after the request, and while they are served."""
    request = generation(LONG)
    for k in range(200):
        stream = server.connect(request[: len(request) * (k % 4) // 3])
        if k % 4 == 3:
            time.sleep(0.02)
        stream.close()
    return collections.Counter({"left": 200})


def well_behaved(server, during):
    """A small request's longest answer, and the status of a picture, while `during` goes on."""
    held = during(server)
    begun = time.monotonic()
    status = server.request("GET", "/v1/server")[0]
    taken = time.monotonic() - begun
    while True:
        made, _ = server.request("POST", "/v1/images/generations", LEAST)
        if made != 503:
            break
        time.sleep(0.2)
    answers = held if isinstance(held, collections.Counter) else {"held": len(held)}
    for stream in [] if isinstance(held, collections.Counter) else held:
        stream.close()
    return answers, f"{status} in {taken * 1000:.0f} ms, picture {made}"


def main():
    bundle, queue = sys.argv[1], (sys.argv[2:] or ["16"])[0]
    server = Server(bundle, queue)
    mib = lambda size: f"{size / 2**20:.0f}"
    server.request("POST", "/v1/images/generations", LEAST)
    print("| load | answers | another client, meanwhile or after | peak, MiB | now, MiB |")
    print("|---|---|---|---|---|")
    now, peak, bound = server.memory()
    print(f"| one picture | 200: 1 | | {mib(peak)} | {mib(now)} |")
    for name, load in [
        ("200 clients at once", clients),
        ("50 uploads of 7.5 MiB at once", uploads),
        ("200 clients that read nothing", slow),
        ("200 connections with half a head", half_open),
        ("200 clients that send garbage", garbage),
        ("200 clients that leave", leaving),
    ]:
        answers, other = well_behaved(server, load)
        server.idle()
        now, peak, _ = server.memory()
        told = ", ".join(f"{status}: {count}" for status, count in sorted(answers.items(), key=str))
        print(f"| {name} | {told} | {other} | {mib(peak)} | {mib(now)} |", flush=True)
    held = [server.connect(generation(LONG))]
    while server.metric("kiln_running_jobs") < 1:
        time.sleep(0.05)
    held += [server.connect(generation(LONG)) for _ in range(int(queue))]
    while server.metric("kiln_queue_jobs") < int(queue):
        time.sleep(0.05)
    begun = time.monotonic()
    os.kill(server.process.pid, signal.SIGTERM)
    ended = collections.Counter(stream.recv(64).split(b" ")[1].decode() for stream in held)
    code = server.process.wait()
    told = ", ".join(f"{status}: {count}" for status, count in ended.items())
    taken = time.monotonic() - begun
    print(f"| SIGTERM with a full queue | {told} | exit code {code} after {taken:.1f} s | | |")
    print(f"\nThe bound that the server printed: {mib(bound)} MiB.")


main()
