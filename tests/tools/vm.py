"""A running emulator: its serial line, its monitor, its end."""

import os
import select
import socket
import subprocess
import time
from pathlib import Path

BIN = Path(os.environ.get("PLATTER_BIN", Path(__file__).parents[2] / "build" / "bin"))


class VM:
    """The serial line is the process's standard input and output; the monitor a socket."""

    def __init__(self, folder, *arguments, display=True, program="emulator"):
        self.socket = Path(folder) / "monitor"
        command = [BIN / program, "-M", "q35", "-serial", "stdio", "-monitor",
                   f"unix:{self.socket},server=on,wait=off"]
        if display:
            command += ["-display", "none"]
        self.output = b""
        self.monitor = None
        self.process = subprocess.Popen([*command, *map(str, arguments)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        if self.monitor:
            self.monitor.close()

    def read(self, seconds):
        """What has come from the serial line within this time; False at the end."""
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return True
        data = os.read(self.process.stdout.fileno(), 65536)
        self.output += data
        return bool(data)

    def wait_for(self, text, seconds=100):
        """Until the text was on the serial line; what was there since the last time."""
        end = time.monotonic() + seconds
        while text.encode() not in self.output:
            left = end - time.monotonic()
            if left <= 0 or not self.read(left):
                tail = self.output[-3000:].decode(errors="replace")
                raise AssertionError(f"'{text}' did not come; the end of the output is:\n{tail}\n"
                                     f"{self.process.stderr.read().decode() if left > 0 else ''}")
        before, _, self.output = self.output.partition(text.encode())
        return before.decode(errors="replace")

    def wait_end(self, seconds=100):
        """The exit status. The rest of the serial line goes to `output`."""
        end = time.monotonic() + seconds
        while self.read(max(end - time.monotonic(), 0)):
            if time.monotonic() > end:
                raise AssertionError(f"it does not end:\n{self.output[-3000:].decode()}")
        return self.process.wait(10)

    def type(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def ask(self, command, seconds=10):
        """The monitor's answer."""
        if not self.monitor:
            for _ in range(100):
                if self.socket.exists():
                    break
                time.sleep(0.02)
            self.monitor = socket.socket(socket.AF_UNIX)
            self.monitor.settimeout(seconds)
            self.monitor.connect(str(self.socket))
            self._prompt()
        self.monitor.sendall(command.encode() + b"\n")
        return self._prompt()

    def _prompt(self):
        answer = b""
        while not answer.endswith(b"(qemu) "):
            data = self.monitor.recv(65536)
            if not data:
                break
            answer += data
        return answer.decode(errors="replace").removesuffix("(qemu) ").replace("\r\n", "\n")

    def screen_shows(self, text, seconds=60):
        """Until the text is on the screen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            screen = self.ask("info screen")
            if text in screen:
                return screen
            time.sleep(0.2)
        raise AssertionError(f"'{text}' is not on the screen:\n{screen}")
