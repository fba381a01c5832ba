# A page in a headless browser.
#
#   python3 browser.py URL WIDTH HEIGHT SCHEME EXPRESSION SCREENSHOT
#
# Waits until EXPRESSION (JavaScript) gives a text, prints it, then whatever
# went wrong, a line each, and writes a screenshot of the page ("": none).
# SCHEME: light or dark.  Chromium is driven through a pipe.

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

url, width, height, scheme, expression, screenshot = sys.argv[1:7]
PATIENCE = float(os.environ.get("PATIENCE", "1"))


class Browser:
    def __init__(self, directory):
        to_it, out = os.pipe()
        back, from_it = os.pipe()

        def descriptors():
            # The order of these two is Chromium's.
            a, b = os.dup(to_it), os.dup(from_it)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
             "--hide-scrollbars", "--no-first-run", "--disable-extensions",
             "--disable-background-networking", "--disable-dev-shm-usage",
             "--user-data-dir=" + directory, "--remote-debugging-pipe"],
            preexec_fn=descriptors, close_fds=False, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(to_it)
        os.close(from_it)
        self.out, self.back = out, back
        self.data = b""
        self.number = 0
        self.events = []
        self.session = None

    def receive(self, end):
        while b"\0" not in self.data:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.back], [], [], left)[0]:
                sys.exit("the browser does not answer")
            more = os.read(self.back, 1 << 20)
            if not more:
                sys.exit("the browser has ended")
            self.data += more
        one, self.data = self.data.split(b"\0", 1)
        return json.loads(one)

    def ask(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60 * PATIENCE
        while True:
            answer = self.receive(end)
            if answer.get("id") == self.number:
                if "error" in answer:
                    sys.exit("%s: %s" % (method, answer["error"]))
                return answer["result"]
            self.events.append(answer)

    def open(self):
        target = self.ask("Target.createTarget", url="about:blank")
        self.session = self.ask("Target.attachToTarget", flatten=True,
                                targetId=target["targetId"])["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(domain + ".enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=int(width),
                 height=int(height), deviceScaleFactor=1,
                 mobile=int(width) < 500)
        self.ask("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=url)

    def evaluate(self, text):
        result = self.ask("Runtime.evaluate", expression=text,
                          returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            return None
        return result["result"].get("value")

    # What the page itself, its policy or the network had to say.
    def troubles(self):
        for event in self.events:
            method, p = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                yield "exception: " + json.dumps(p["exceptionDetails"])
            elif method == "Log.entryAdded":
                yield "log: " + p["entry"]["text"]
            elif method == "Runtime.consoleAPICalled":
                yield "console: " + json.dumps(p["args"])
            elif method == "Network.requestWillBeSent":
                asked = p["request"]["url"]
                if not asked.startswith((url, "data:")):
                    yield "asks for " + asked


directory = tempfile.mkdtemp()
browser = Browser(directory)
try:
    browser.open()
    end = time.monotonic() + 30 * PATIENCE
    said = None
    while not said and time.monotonic() < end:
        time.sleep(0.2)
        said = browser.evaluate(expression)
    print(said)
    for trouble in browser.troubles():
        print(trouble)
    if screenshot:
        picture = browser.ask("Page.captureScreenshot", format="png",
                              captureBeyondViewport=True)
        with open(screenshot, "wb") as f:
            f.write(base64.b64decode(picture["data"]))
finally:
    # Its helpers are of its group.
    try:
        os.killpg(browser.process.pid, 9)
    except ProcessLookupError:
        pass
    browser.process.wait()
    shutil.rmtree(directory, ignore_errors=True)
