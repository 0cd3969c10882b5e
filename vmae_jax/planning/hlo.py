"""Reads compiled programs: loops, collectives and the compiler's own cycle estimates.

Works on the text of `jax.stages.Compiled.as_text()`, the scheduled HLO of one device.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

_DTYPE_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1},
    **{"bf16": 2, "f16": 2, "s16": 2, "u16": 2},
    **{"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8},
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter"),
    *("all-to-all", "collective-permute", "collective-broadcast"),
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the leading %.
      shape: as written, e.g. "bf16[16,208,1408]{2,1,0}" or a tuple in parentheses.
      opcode: e.g. "fusion".
      rest: operands and attributes, as written.
    """

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def source(self) -> str:
        """Name stack of the JAX operation that it came from; "" if the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between devices.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "collective-permute", ...
      dtype: of the largest array.
      bytes: of one execution: the gathered result, or what is reduced; of one device.
      group: devices that take part together.
      times: executions per step.
      source: name stack of the JAX operation; "" if the compiler made it.
    """

    kind: str
    dtype: str
    bytes: int
    group: int
    times: int
    source: str

    @property
    def traffic(self) -> float:
        """Bytes that one device sends per step, on rings."""
        share = (self.group - 1) / self.group if self.group else 1.0
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.bytes * factor * self.times


class Program:
    """A compiled program, parsed.

    Attributes:
      text: what it was read from.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._computations = dict(_computations(text))
        entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
        if entry is None:
            raise ValueError("this is not the text of a compiled program: it has no ENTRY")
        # computation -> executions per step, for all that is reached and for the scheduled ones.
        self._times: dict[str, int] = {}
        self._scheduled: dict[str, int] = {}
        self._visit(entry[1], 1, scheduled=True)

    def _visit(self, name: str, times: int, *, scheduled: bool) -> None:
        self._times[name] = self._times.get(name, 0) + times
        if scheduled:
            self._scheduled[name] = self._scheduled.get(name, 0) + times
        for instruction in self._computations.get(name, ()):
            rest = instruction.rest
            if instruction.opcode == "while":
                body, condition = _attribute(rest, "body"), _attribute(rest, "condition")
                self._visit(body, times * self._trips(condition), scheduled=scheduled)
                continue
            inside = scheduled and instruction.opcode in ("call", "conditional")
            for callee in _callees(rest):
                self._visit(callee, times, scheduled=inside)

    def _trips(self, condition: str) -> int:
        """Iterations of a loop that counts from 0 up to a constant, as scans do."""
        constants = [
            int(found[1])
            for instruction in self._computations[condition]
            if instruction.opcode == "constant"
            and (found := re.match(r"\((\d+)\)", instruction.rest))
        ]
        return max(constants, default=1)

    @functools.cached_property
    def loops(self) -> dict[str, int]:
        """Body -> iterations of every loop."""
        return {
            _attribute(i.rest, "body"): self._trips(_attribute(i.rest, "condition"))
            for i in self.instructions()
            if i.opcode == "while"
        }

    def instructions(self) -> Iterator[Instruction]:
        """Those of all computations, fused ones too, each once."""
        return itertools.chain.from_iterable(self._computations.values())

    @property
    def windowed_loops(self) -> list[str]:
        """Loops into which the compiler rewrote matmuls with sharded operands."""
        return [name for name in self.loops if "windowed_dot_general" in name]

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """All transfers, each once.

        The TPU compiler spreads an asynchronous transfer over several fusions, which then share
        its channel, and writes a reduce-scatter as a fusion of an all-reduce and a slice.
        """
        found: dict[str, Collective] = {}
        for name, times in self._times.items():
            for instruction in self._computations.get(name, ()):
                kind = instruction.opcode.removesuffix("-start")
                if kind not in _COLLECTIVES:
                    continue
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                key = channel[1] if channel else instruction.name
                found.setdefault(key, _collective(kind, instruction, times))
        return list(found.values())

    @property
    def cycles(self) -> int:
        """Sum of the compiler's estimates, loops multiplied out; kernels of our own count nothing.

        A model, not a timing: good for ranking two programs for the same chip.
        """
        return sum(cycles for _, cycles in self.costs())

    def costs(self) -> Iterator[tuple[Instruction, int]]:
        """(instruction, estimated cycles per step) of everything that is scheduled."""
        for name, times in self._scheduled.items():
            for instruction in self._computations.get(name, ()):
                found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
                if found:
                    yield instruction, int(found[1]) * times

    def costliest(self, count: int) -> list[tuple[Instruction, int]]:
        """The `count` instructions with the most estimated cycles per step."""
        return sorted(self.costs(), key=lambda cost: cost[1], reverse=True)[:count]

    def cycles_by_scope(self, scopes: Sequence[str]) -> dict[str, int]:
        """The estimates, shared out by the `jax.named_scope` that an instruction came from.

        Of several that it came from, the first in `scopes` counts. What comes from none of them, or
        was made by the compiler, is under "other".
        """
        inside = {scope: re.compile(rf"\b{scope}\b") for scope in scopes}
        cycles = dict.fromkeys((*scopes, "other"), 0)
        for instruction, count in self.costs():
            found = (scope for scope in scopes if inside[scope].search(instruction.source))
            cycles[next(found, "other")] += count
        return cycles

    @property
    def dtypes(self) -> set[str]:
        """Element types of all arrays."""
        return {found[1] for found in _ARRAY.finditer(self.text)} & _DTYPE_BYTES.keys()

    @property
    def donated(self) -> int:
        """Arguments whose memory a result takes over."""
        return len(re.findall(r"\{[\d, ]*\}: \(\d+, \{[\d, ]*\}, (?:may|must)-alias\)", self.text))


def _computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    name, instructions = "", []
    for line in text.splitlines():
        if not line.startswith(" "):
            head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                name, instructions = head[1], []
            elif line == "}" and name:  # not those of text that a kernel carries
                yield name, instructions
                name = ""
        elif name and (instruction := _instruction(line)):
            instructions.append(instruction)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    body = line[head.end() :]
    end = _closing(body) + 1 if body.startswith("(") else body.index(" ")
    call = re.match(r" ?([\w\-]+)", body[end:])
    if call is None:
        return None
    return Instruction(head[1], body[:end], call[1], body[end + call.end() :])


def _closing(text: str) -> int:
    """Place of the parenthesis that closes the one at the start."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _attribute(rest: str, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", rest)
    if found is None:
        raise ValueError(f"an instruction has no {name}=: {rest[:80]!r}")
    return found[1]


def _callees(rest: str) -> list[str]:
    names = re.findall(
        r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", rest
    )
    for group in re.findall(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", rest):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def _collective(kind: str, instruction: Instruction, times: int) -> Collective:
    arrays = [
        (t, _size(dims) * _DTYPE_BYTES.get(t, 4)) for t, dims in _ARRAY.findall(instruction.shape)
    ]
    started = instruction.opcode.endswith("-start") and kind != "all-reduce"
    # A started transfer is written as (what goes in, what comes out, ...).
    total = max(size for _, size in arrays) if started else sum(size for _, size in arrays)
    dtype = max(arrays, key=lambda array: array[1])[0]
    return Collective(kind, dtype, total, _group(instruction.rest), times, instruction.source)


def _size(dims: str) -> int:
    size = 1
    for dim in filter(None, dims.split(",")):
        size *= int(dim)
    return size


def _group(rest: str) -> int:
    """Devices in one replica group, in any of the three ways in which groups are written."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        group = 1
        for axis in re.findall(r"'(\w+)'", found[2]):
            group *= int(sizes[axis])
        return group
    return 2 if "source_target_pairs" in rest else 0
