#!/usr/bin/env python3
"""The daemon's promises that only a card can show, on the shape of Llama-3.1-8B with random weights:
a pause leaves no process on the card and changes no bit; memory that others hold keeps a job waiting and says who;
two jobs run side by side while a third waits; a sticky CUDA error fails its job alone and the next one starts;
a plan that does not fit is refused. With --model a folder of that shape: how long after its start a worker has made
its first step.

  tests/deploy/card_daemon.py BIN_DIR [--out DIR] [--model DIR]

BIN_DIR holds hone, honed and honed-worker of a build with CUDA. Exit code 77: there is no card here. Takes about two
minutes and 80 GB of a card. The figures stand in tests/bench/RESULTS.md.
"""
import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

PAUSE_LIMIT_S, ERROR_LIMIT_S, FIRST_STEP_LIMIT_S = 10, 5, 15
STEPS, BUDGET_MIB, TOKENS = 24, 24000, 2048
PORT = 29464
SHAPE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench", "shapes", "llama-3.1-8b", "config.json")

# Takes all of the card's free memory but so many MiB, through the driver's library, until its input ends.
HOG = r"""
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def ok(code):
    if code: sys.exit("CUDA driver error %d" % code)
device, context, block = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
free, total = ctypes.c_size_t(), ctypes.c_size_t()
ok(cuda.cuInit(0))
ok(cuda.cuDeviceGet(ctypes.byref(device), 0))
ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
ok(cuda.cuCtxSetCurrent(context))
ok(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
ok(cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(free.value - (int(sys.argv[1]) << 20))))
print("taken", flush=True)
sys.stdin.read()
"""


def until(happened, seconds, every=0.02):
    end = time.time() + seconds
    while time.time() < end:
        if happened():
            return True
        time.sleep(every)
    return bool(happened())


class Check:
    failures = 0

    def __call__(self, passed, text):
        print(("ok      " if passed else "FAILED  ") + text, flush=True)
        self.failures += not passed
        return passed


class Box:
    """A daemon of its own, with a worker that breaks the card in step 3 of jobs named "bad"."""

    def __init__(self, programs, folder, out):
        self.folder, self.out = folder, out
        self.env = dict(os.environ, PATH=programs + ":" + os.environ["PATH"], HOME=folder)
        for name, part in (("XDG_STATE_HOME", "state"), ("XDG_RUNTIME_DIR", "run"), ("XDG_CACHE_HOME", "cache"),
                           ("XDG_CONFIG_HOME", "config")):
            self.env[name] = os.path.join(folder, part)
            os.makedirs(self.env[name], mode=0o700)
        worker = os.path.join(folder, "worker.sh")
        with open(worker, "w") as script:
            script.write('#!/bin/sh\nexec "%s/honed-worker" "$@" --inject-fault bad:3\n' % programs)
        os.chmod(worker, 0o700)
        with open(SHAPE) as shape:
            vocabulary = json.load(shape)["vocab_size"]
        source = random.Random(1)
        with open(os.path.join(folder, "rows.jsonl"), "w") as rows:
            for _ in range(64):
                ids = [source.randrange(10, vocabulary) for _ in range(TOKENS)]
                rows.write(json.dumps({"ids": ids, "trained": [[1, TOKENS]]}) + "\n")
        code, _, text = self.hone("daemon", "start", "--metrics", "127.0.0.1:%d" % PORT, "--", "--worker", worker)
        if code:
            sys.exit("the daemon does not start: " + text)

    def job_file(self, source):
        path = os.path.join(self.folder, "job.yaml")
        with open(path, "w") as out:
            out.write("""model: {source: "%s", quantization: nf4}
objective: {sft: {}}
data: {train: rows.jsonl, max_length: %d}
adapter: {lora: {r: 16}}
batch: {examples: 2}
optimizer: {learning_rate: 1e-4}
run: {max_steps: %d, save_steps: 1000, device: cuda}
memory: {policy: fastest, vram_budget: %dMiB}
""" % (source, TOKENS, STEPS, BUDGET_MIB))
        return path

    def hone(self, *words):
        done = subprocess.run(("hone",) + words, env=self.env, cwd=self.folder, capture_output=True, text=True,
                              timeout=120)
        return done.returncode, done.stdout, done.stderr

    def submit(self, name, *more):
        code, out, text = self.hone("submit", "job.yaml", "-q", "-o", "name", "--set", "name=" + name, *more)
        if code:
            raise RuntimeError("%s: %s" % (name, text))
        return out.strip().split("/")[-1]

    def job(self, job):
        return json.loads(self.hone("get", job, "-o", "json")[1])

    def ended(self, job, seconds=120):
        until(lambda: self.job(job)["state"] in ("SUCCEEDED", "FAILED", "CANCELLED", "HELD"), seconds, 0.2)
        return self.job(job)

    def path(self, job, *parts):
        return os.path.join(self.folder, "state", "hone", "jobs", job, *parts)

    def steps(self, job, attempt=1):
        try:
            with open(self.path(job, "attempts", str(attempt), "steps.jsonl")) as lines:
                return sum(1 for _ in lines)
        except OSError:
            return 0

    def adapter(self, job):
        with open(self.path(job, "output", "adapter", "adapter_model.safetensors"), "rb") as weights:
            return hashlib.sha256(weights.read()).hexdigest()

    def watch(self, job):
        """Writes events as they come; read() gives them."""
        path = os.path.join(self.out, job + ".jsonl")
        process = subprocess.Popen(("hone", "watch", job, "-o", "json"), env=self.env, stdout=open(path, "w"),
                                   stderr=subprocess.DEVNULL)

        def read():
            process.wait(timeout=60)
            with open(path) as lines:
                return [json.loads(line) for line in lines]
        return read

    def metrics(self, pattern):
        text = urllib.request.urlopen("http://127.0.0.1:%d/metrics" % PORT, timeout=5).read().decode()
        return [line for line in text.splitlines() if re.match(pattern, line)]


def seconds_of(event):
    hours, minutes, seconds = re.match(r".*T(\d+):(\d+):([\d.]+)", event["time"]).groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def newest(events, wanted):
    """When the last such event was; no number, with which every comparison fails, where there was none."""
    return max((seconds_of(e) for e in events if "time" in e and wanted(e)), default=float("nan"))


def workers():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as stat:
                head, tail = stat.read().rsplit(")", 1)
            if head.endswith("(honed-worker") and tail.split()[0] != "Z":
                found.append(int(pid))
        except OSError:
            pass
    return found


def on_card():
    ask = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader")
    return subprocess.run(ask, capture_output=True, text=True).stdout.strip()


class Hog:
    def __init__(self, leave_mib):
        self.process = subprocess.Popen((sys.executable, "-c", HOG, str(leave_mib)), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "taken":
            raise RuntimeError("the card's memory could not be taken")

    def free(self):
        self.process.kill()
        self.process.wait()


def pausing(box, check):
    calm = box.submit("calm")
    check(box.ended(calm)["state"] == "SUCCEEDED", "an undisturbed job of %d steps" % STEPS)
    job = box.submit("paused")
    until(lambda: box.steps(job) >= 5, 60)
    begin = time.time()
    box.hone("pause", job)
    until(lambda: not workers(), 60)
    gone = time.time() - begin
    until(lambda: box.job(job)["state"] == "PAUSED", 60)
    left = on_card()
    check(gone <= PAUSE_LIMIT_S and not left,
          "pause: its process is gone after %.2f s, PAUSED after %.2f s, on the card: %s" %
          (gone, time.time() - begin, left or "nobody"))
    hog = Hog(leave_mib=10000)
    box.hone("resume", job)
    time.sleep(3)
    waiting = box.job(job)
    check(waiting["state"] == "QUEUED" and waiting["state_reason"] == "WAITS_FOR_MEMORY" and
          "other programs hold" in waiting["state_message"], "memory of others: " + waiting["state_message"])
    begin = time.time()
    hog.free()
    until(lambda: box.job(job)["state"] != "QUEUED", 30)
    print("        it started %.2f s after that memory was free" % (time.time() - begin))
    done = box.ended(job)
    check(done["state"] == "SUCCEEDED" and len(done["attempts"]) == 2, "the paused job ends in its second attempt")
    check(box.adapter(job) == box.adapter(calm), "bit-exact: adapter %s" % box.adapter(calm)[:16])


def together(box, check):
    hog = Hog(leave_mib=56000)  # two fit, a third does not
    jobs = [box.submit(name) for name in ("bad", "beside", "next")]
    reads = [box.watch(job) for job in jobs]
    check(until(lambda: [box.job(job)["state"] for job in jobs] == ["RUNNING", "RUNNING", "QUEUED"], 60, 0.1),
          "two jobs run side by side, the third waits: " + box.job(jobs[2])["state_message"])
    print("        " + "\n        ".join(box.metrics("hone_job_device_memory_bytes|hone_gpu_memory|hone_gpu_foreign")))
    ends = [box.ended(job) for job in jobs]
    events = [read() for read in reads]
    hog.free()
    bad = ends[0]
    check(bad["state"] == "FAILED" and bad["state_reason"] == "DEVICE_ERROR", "a bad kernel: " + bad["state_message"])
    last = newest(events[0], lambda e: "step" in e)
    failed = newest(events[0], lambda e: e.get("state", {}).get("to") == "FAILED")
    started = newest(events[2], lambda e: e.get("state", {}).get("to") == "STARTING")
    check(failed - last <= ERROR_LIMIT_S, "FAILED %.2f s after the last good step" % (failed - last))
    check(0 <= started - failed <= ERROR_LIMIT_S, "the next job starts %.2f s later" % (started - failed))
    check(ends[1]["state"] == ends[2]["state"] == "SUCCEEDED", "the job beside it and the next one succeed")
    check(box.adapter(jobs[1]) == box.adapter(jobs[2]), "side by side or after it: the same bits")
    code, _, text = box.hone("submit", "job.yaml", "--set", "memory.vram_budget=3GiB")
    check(code == 6 and "PLAN_DOES_NOT_FIT" in text, "a plan that does not fit is refused, exit code %d" % code)


def first_step(box, check, model):
    box.job_file(model)
    for kind in ("products timed in this run or before", "again"):
        begin = time.time()
        output = tempfile.mkdtemp(dir=box.folder)
        worker = subprocess.Popen(("honed-worker", "train", "--spec", "job.yaml", "--output", output), env=box.env,
                                  cwd=box.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        reached = any('"step":{' in line.replace(" ", "") for line in worker.stdout)
        taken = time.time() - begin
        worker.kill()
        worker.wait()
        check(reached and taken <= FIRST_STEP_LIMIT_S,
              "first step %.2f s after the worker's start (%s)" % (taken, kind))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("programs")
    arguments.add_argument("--out")
    arguments.add_argument("--model")
    flags = arguments.parse_args()
    if shutil.which("nvidia-smi") is None or subprocess.run(("nvidia-smi", "-L"), capture_output=True).returncode:
        print("skipped: no card here")
        return 77
    check = Check()
    with tempfile.TemporaryDirectory() as folder:
        box = Box(os.path.abspath(flags.programs), folder, flags.out or folder)
        try:
            box.job_file("random:" + os.path.abspath(SHAPE))
            pausing(box, check)
            together(box, check)
            if flags.model:
                first_step(box, check, os.path.abspath(flags.model))
        finally:
            box.hone("daemon", "stop")
    print("%d failed" % check.failures)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
