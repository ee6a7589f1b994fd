"""interrupts: signals wait while octavo works; whatever ends a call leaves model and process whole.

Interruptions at random moments are made by interrupt.py, in a process of its own each.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import interrupt
import octavo
from octavo.data import Batches
from octavo.graph.capture import capture
from octavo.interrupts import check, held_back, let_through, undo_with
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.rounding.lockstep import Lockstep
from octavo.rounding.methods.nearest import nearest_of_layer

FULL = os.environ.get("OCTAVO_SUITE") == "ci"


def interrupt_self():
    os.kill(os.getpid(), signal.SIGINT)


# ---- random moments ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(interrupt.CASES))
def test_a_call_interrupted_at_any_moment_harms_nothing(case):
    moments = (300 if case in ("data", "qat", "inplace") else 30) if FULL else 6
    run = subprocess.run(
        [sys.executable, interrupt.__file__, case, str(moments), os.environ.get("OCTAVO_SEED", "0")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(interrupt.__file__).parent,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-6000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["harmed"] == []
    assert result["interrupted"] >= moments / 6


# ---- holding signals back ------------------------------------------------------------------------


def test_ctrl_c_waits_for_a_check():
    reached = []
    with pytest.raises(KeyboardInterrupt), held_back():
        interrupt_self()
        reached.append("before")
        check()
        reached.append("behind")
    assert reached == ["before"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_goes_through_while_code_of_the_user_runs():
    reached = []

    def theirs():
        reached.append("theirs")
        interrupt_self()
        reached.append("behind")

    with pytest.raises(KeyboardInterrupt), held_back():
        let_through(theirs)
    assert reached == ["theirs"]
    with pytest.raises(KeyboardInterrupt), held_back():
        interrupt_self()
        let_through(theirs)  # What has waited comes before it.
    assert reached == ["theirs"]


def test_ctrl_c_that_comes_last_is_raised_by_the_call_and_undoes_it():
    done, undone = [], []

    @held_back()
    def inner():
        undo_with(lambda: undone.append("inner"))

    @held_back()
    def call(interrupts):
        undo_with(lambda: undone.append("call"))
        inner()
        if interrupts:
            interrupt_self()
        done.append(interrupts)

    with pytest.raises(KeyboardInterrupt):
        call(True)
    assert (done, undone) == ([True], ["inner", "call"])
    call(False)
    assert undone == ["inner", "call"]


def test_a_call_that_a_user_makes_inside_of_another_is_not_undone_with_it():
    undone = []

    @held_back()
    def inner():
        undo_with(lambda: undone.append("inner"))

    with pytest.raises(ValueError, match="mine"), held_back():
        let_through(inner)
        raise ValueError("mine")
    assert undone == []


def test_handlers_of_users_are_called_and_stay():
    seen = []

    def own(number, frame):
        seen.append((number, frame is not None))

    before = signal.signal(signal.SIGINT, own)
    try:
        with held_back():
            interrupt_self()
            interrupt_self()
            assert seen == []
            check()
            assert seen == [(signal.SIGINT, True)] * len(seen) and seen
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_set_by_a_score_stays_and_may_call_the_one_before():
    seen = []
    first = signal.signal(signal.SIGINT, lambda *_: seen.append("first"))
    mine = signal.getsignal(signal.SIGINT)
    try:
        with held_back():

            def theirs():
                before = signal.getsignal(signal.SIGINT)

                def chained(number, frame):
                    seen.append("chained")
                    before(number, frame)

                signal.signal(signal.SIGINT, chained)
                with held_back():
                    interrupt_self()
                    assert seen == []
                assert seen == ["chained", "first"]

            let_through(theirs)
        interrupt_self()
        assert seen == ["chained", "first"] * 2
        assert signal.getsignal(signal.SIGINT) is not mine
    finally:
        signal.signal(signal.SIGINT, first)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_handlers_that_are_not_of_python_are_left_alone(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with held_back():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hold_nothing_back():
    inside, go = threading.Event(), threading.Event()

    def work():
        with held_back():
            inside.set()
            go.wait()
            check()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    try:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            interrupt_self()
            time.sleep(1)
    finally:
        go.set()
        thread.join()


def test_a_time_limit_by_sigalrm_is_held_back_too():
    def late(_number, _frame):
        raise TimeoutError("mine")

    before = signal.signal(signal.SIGALRM, late)
    model = interrupt.model()
    state, process = interrupt.state(model), interrupt.process()
    try:
        process = interrupt.process()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeoutError, match="mine"):
            while True:
                octavo.quantize(model, 4, data=interrupt.X, progress=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        harmed = interrupt.different(process, interrupt.process())
        signal.signal(signal.SIGALRM, before)
    assert harmed == [] and interrupt.different(state, interrupt.state(model)) == []


# ---- runs in lockstep ----------------------------------------------------------------------------


class Clinging(nn.Module):
    """Catches whatever comes, and calls torch on its way out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        try:
            with torch.no_grad():
                x = self.a(x) + 1
        except BaseException:
            x = x * 2
            raise
        finally:
            x = x + 1
        return self.b(x)


@pytest.mark.parametrize("halts", [0, 1, 2])
def test_runs_end_wherever_they_are_left_even_if_the_model_clings(halts):
    model = Clinging().eval()
    data = Batches(torch.randn(8, 4))
    decided = plan(capture(model), Scheme(4), "dynamic")
    before = threading.active_count()
    runs = Lockstep(model, decided, data, qparams={})
    pauses = iter(runs)
    for _ in range(halts):
        pause = next(pauses)
        for name in pause.layers:
            module = model.get_submodule(name)
            runs.codes[name] = nearest_of_layer(module, module.weight, runs.sites[name].scheme)
    pauses.close()
    assert threading.active_count() == before
    assert not any("forward" in module.__dict__ for module in model.modules())


# ---- errors of other kinds -----------------------------------------------------------------------


class Mine(BaseException):
    """No Exception: nothing may take it for one of its own."""


class Data(list):
    """Batches that may be read several times, until one of them is one too many."""

    def __init__(self, reads):
        super().__init__(interrupt.X.split(8))
        self.left = reads

    def __iter__(self):
        for x in super().__iter__():
            self.left -= 1
            if self.left < 0:
                raise Mine("data")
            yield x


class Failing:
    """A hook that fails at its nth call."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, _module, _args):
        self.left -= 1
        if self.left < 0:
            raise Mine("forward")


def unharmed(model, call, **options):
    """That a call raises Mine and changes nothing; False if it comes to its end."""
    state, process = interrupt.state(model), interrupt.process()
    try:
        call(model, progress=False, inplace=True, **options)
    except Mine:
        assert interrupt.different(process, interrupt.process()) == []
        assert interrupt.different(state, interrupt.state(model)) == []
        return True
    return False


@pytest.mark.parametrize("qat", [False, True])
def test_data_that_fails_at_any_read(qat):
    count = 0
    while unharmed(interrupt.model(), octavo.quantize, bits=4, data=Data(count), qat=qat):
        count += 1
    assert count > 3


@pytest.mark.parametrize("qat", [False, True])
def test_a_forward_that_fails_at_any_call(qat):
    count = 0
    while True:
        model = interrupt.model()
        model.branching.other.register_forward_pre_hook(Failing(count))
        if not unharmed(model, octavo.quantize, bits=4, data=interrupt.X, qat=qat):
            break
        count += 1
    assert count > 3


def test_a_score_that_fails_at_any_call():
    calls = []

    def fails_at(number):
        def score(_model):
            calls.append(number)
            if calls.count(number) > number:
                raise Mine("score")
            return 0.0

        return score

    for number in range(3):
        options = {"bits": 3, "evaluate": fails_at(number), "max_drop": 0.1}
        assert unharmed(interrupt.model(), octavo.quantize, **options)


class Closed:
    """A stderr that has gone away after some lines."""

    def __init__(self, lines):
        self.left = lines

    def write(self, _text):
        self.left -= 1
        if self.left < 0:
            raise Mine("stderr")

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_stderr_that_fails_at_any_line(monkeypatch):
    for lines in range(0, 12, 2):
        model = interrupt.model().train()
        state = interrupt.state(model)
        with monkeypatch.context() as patched, pytest.raises(Mine, match="stderr"):
            patched.setattr(sys, "stderr", Closed(lines))
            octavo.quantize(model, 4, data=interrupt.X, inplace=True)
        assert interrupt.different(state, interrupt.state(model)) == []
