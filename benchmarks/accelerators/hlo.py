"""Reads the text of a compiled XLA program: bytes, kernels, loops and collectives of one run.

`Compiled.cost_analysis` counts the body of a loop once, so it cannot be used for a program that is
mostly loop. Here the body counts as often as it runs.

    module = parse(compiled.as_text())
    cost = measure(module)
    cost.bytes, cost.kernels, cost.loops[0].trips
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator

_DTYPE_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# What neither reads nor writes an array.
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "optimization-barrier",
}
_HOST = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done")
# Custom calls that reserve memory or mark something and run nothing.
_EMPTY_CALLS = ("AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a type: its element type, shape and place in memory.

    Attributes:
        dtype: as HLO spells it, such as "f32" or "bf16".
        shape: sizes of its dimensions.
        order: dimensions from the fastest to the slowest; () where the text has no layout.
        tile: sizes that the fastest dimensions are rounded up to, slowest first; () if untiled.
        space: memory space; 0 is HBM. On a TPU 1 is VMEM.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return math.ceil(math.prod(self.shape) * _DTYPE_BITS.get(self.dtype, 0) / 8)

    @property
    def padded_bytes(self) -> int:
        """Bytes that it takes with its fastest dimensions rounded up to whole tiles."""
        if not self.tile or len(self.order) != len(self.shape):
            return self.bytes
        sizes = [self.shape[axis] for axis in self.order]  # fastest first
        for place, size in enumerate(reversed(self.tile)):
            if place < len(sizes):
                sizes[place] = math.ceil(sizes[place] / size) * size
        # A scalar fills no tile of HBM that would matter.
        return math.ceil(math.prod(sizes) * _DTYPE_BITS.get(self.dtype, 0) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
        name: without "%".
        arrays: of its result; several if that is a tuple.
        is_tuple: whether the result is a tuple.
        opcode: such as "fusion".
        operands: names.
        literal: the text between the parentheses.
        attributes: the text after them.
    """

    name: str
    arrays: tuple[Array, ...]
    is_tuple: bool
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as `calls` or `body` names."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    def branches(self) -> list[str]:
        """Computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return [name.strip().lstrip("%") for name in listed[1].split(",")]
        both = (self.called("true_computation"), self.called("false_computation"))
        return [name for name in both if name]

    def number(self, key: str) -> int | None:
        """A whole number of the backend's settings, such as `estimated_cycles`."""
        match = re.search(rf'"{key}":"?(\d+)', self.attributes)
        return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order, and the name of the one that is returned."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @property
    def parameters(self) -> dict[int, str]:
        """Number → name of its parameters."""
        return {
            int(one.literal): one.name
            for one in self.instructions.values()
            if one.opcode == "parameter"
        }


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations of a program and the name of the one that it starts with."""

    computations: dict[str, Computation]
    entry: str


@dataclasses.dataclass
class Loop:
    """A loop of a program.

    Attributes:
        name: of its instruction.
        trips: how often its body runs; None if the text does not say, counted as 1.
        body: cost of one run of the body, with the loops in it.
    """

    name: str
    trips: int | None
    body: Cost


@dataclasses.dataclass
class Cost:
    """What one run costs.

    Attributes:
        bytes: of arrays in HBM that instructions read and write.
        padded_bytes: the same with arrays padded to whole tiles.
        fast_bytes: of arrays that are kept elsewhere: in a TPU's VMEM.
        cycles: the compiler's estimate, where its text has one; NaN where a kernel of our own is
            among what runs, of which it estimates nothing.
        kernels: instructions that do something, as launched one after the other.
        opcodes: how many instructions of each kind run.
        collectives: how many exchanges between devices run, by kind and by the JAX operation
            that they are for: "all-gather (eigh)".
        host_calls: names of what calls the host.
        loops: outermost loops, in order.
    """

    bytes: float = 0.0
    padded_bytes: float = 0.0
    fast_bytes: float = 0.0
    cycles: float = 0.0
    kernels: int = 0
    opcodes: Counter[str] = dataclasses.field(default_factory=Counter)
    collectives: Counter[str] = dataclasses.field(default_factory=Counter)
    host_calls: list[str] = dataclasses.field(default_factory=list)
    loops: list[Loop] = dataclasses.field(default_factory=list)

    def add(self, other: Cost, times: int = 1) -> None:
        """Adds another cost several times; its loops are not taken over."""
        self.bytes += times * other.bytes
        self.padded_bytes += times * other.padded_bytes
        self.fast_bytes += times * other.fast_bytes
        self.cycles += times * other.cycles
        self.kernels += times * other.kernels
        for mine, theirs in (
            (self.opcodes, other.opcodes),
            (self.collectives, other.collectives),
        ):
            for key, count in theirs.items():
                mine[key] += times * count
        self.host_calls += other.host_calls

    @property
    def unknown_loops(self) -> list[str]:
        """Names of loops, inner ones too, whose trips are not known."""
        names = []
        for loop in self.loops:
            names += [loop.name] if loop.trips is None else []
            names += loop.body.unknown_loops
        return names


# ---------------------------------------------------------------- parsing


def parse(text: str) -> Module:
    """The computations of an optimised HLO module's text.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = None
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        header = _HEADER.match(line)
        if header and name is None:
            name, root, instructions = header[2], None, {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name is not None:
            computations[name] = Computation(
                name, instructions, root or next(reversed(instructions))
            )
            name = None
        elif name is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[2], match[3])
            instructions[instruction.name] = instruction
            root = instruction.name if match[1] else root
    if entry is None:
        raise ValueError("the text has no ENTRY computation; pass Compiled.as_text().")
    return Module(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
    is_tuple = rest.startswith("(")
    end = _closing(rest, 0) + 1 if is_tuple else re.match(r"\S+", rest).end()  # type: ignore[union-attr]
    opened = rest.index("(", end)
    closed = _closing(rest, opened)
    literal = rest[opened + 1 : closed]
    opcode = rest[end:opened].strip()
    operands = () if opcode in ("parameter", "constant") else tuple(_OPERAND.findall(literal))
    return Instruction(
        name,
        tuple(_arrays(rest[:end])),
        is_tuple,
        opcode,
        operands,
        literal,
        rest[closed + 1 :],
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a parenthesis is not closed in: {text[:200]}")


def _arrays(text: str) -> Iterator[Array]:
    for match in _ARRAY.finditer(text):
        if match[1] not in _DTYPE_BITS:
            continue
        shape = tuple(int(size) for size in match[2].split(",") if size)
        order, tile, space = (), (), 0
        if match[3]:
            head, _, tail = match[3].partition(":")
            order = tuple(int(axis) for axis in head.split(",") if axis)
            tiled = re.search(r"T\(([\d,]+)\)", tail)
            tile = tuple(int(size) for size in tiled[1].split(",")) if tiled else ()
            placed = re.search(r"S\((\d+)\)", tail)
            space = int(placed[1]) if placed else 0
        yield Array(match[1], shape, order, tile, space)


# ---------------------------------------------------------------- cost


def measure(module: Module) -> Cost:
    """The cost of one run of the program on each device, loops run as often as they turn.

    Of a conditional the dearest branch counts.
    """
    return _cost(module, module.computations[module.entry], {})


def _cost(module: Module, computation: Computation, known: dict[int, int]) -> Cost:
    total = Cost()
    for one in computation.instructions.values():
        if one.opcode == "while":
            condition, body = one.called("condition"), one.called("body")
            assert condition
            assert body
            start = _tuple_constants(module, computation, one.operands[0], known)
            trips = _trips(module, one, start)
            inner = module.computations[body]
            cost = _cost(module, inner, _unchanged(inner, start))
            total.add(cost, 1 if trips is None else trips)
            total.loops.append(Loop(one.name, trips, cost))
        elif one.opcode == "conditional":
            costs = [_cost(module, module.computations[name], {}) for name in one.branches()]
            dearest = max(costs, key=lambda cost: (cost.bytes + cost.fast_bytes, cost.kernels))
            total.add(dearest)
            total.loops += dearest.loops
        elif one.opcode in ("call", "async-start"):
            name = one.called("to_apply") or one.called("calls")
            if name is None:
                continue
            cost = _cost(module, module.computations[name], {})
            total.add(cost)
            total.loops += cost.loops
        else:
            _add_instruction(total, module, computation, one)
    return total


def _add_instruction(
    total: Cost, module: Module, computation: Computation, one: Instruction
) -> None:
    kind = one.opcode
    if kind in _FREE or kind.endswith(("-done", "-update")):
        return
    target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    if target and target[1] in _EMPTY_CALLS:
        return
    collective = kind.removesuffix("-start")
    if collective in _COLLECTIVES:
        named = re.search(r'op_name="([^"]*)"', one.attributes)
        purpose = f" ({named[1].rpartition('/')[2]})" if named else ""
        total.collectives[collective + purpose] += 1
    if kind in _HOST or (target and re.search(r"callback|host", target[1], re.IGNORECASE)):
        total.host_calls.append(target[1] if target else kind)
    total.kernels += 1
    total.opcodes[kind] += 1
    own = target is not None and target[1] == "tpu_custom_call"
    total.cycles += math.nan if own else one.number("estimated_cycles") or 0
    for array, share in _traffic(module, computation, one):
        if array.space == 0:
            total.bytes += array.bytes * share
            total.padded_bytes += array.padded_bytes * share
        else:
            total.fast_bytes += array.bytes * share


def _traffic(
    module: Module, computation: Computation, one: Instruction
) -> Iterable[tuple[Array, float]]:
    """Arrays that an instruction reads or writes, and what share of each."""
    read = [computation.instructions[name] for name in one.operands]
    if one.opcode == "copy-start":
        # Its result is (copy, original, context).
        return [(one.arrays[0], 1.0), (one.arrays[1], 1.0)]
    if one.opcode == "fusion":
        name = one.called("calls")
        assert name is not None
        return _fusion_traffic(module.computations[name], one, read)
    if one.opcode == "dynamic-slice" or one.opcode == "gather":
        result = one.arrays[0]
        return [(result, 1.0), (_part_of(read[0].arrays[0], result), 1.0)]
    if one.opcode == "dynamic-update-slice":
        update = read[1].arrays[0]
        return [(update, 1.0), (_part_of(one.arrays[0], update), 1.0)]
    arrays = [array for operand in read for array in operand.arrays]
    return [(array, 1.0) for array in (*arrays, *one.arrays)]


def _fusion_traffic(inner: Computation, one: Instruction, read: list[Instruction]):
    """Of an operand that only slices are taken from, the slices; of a result that is written in
    place, what is written."""
    users: dict[str, list[Instruction]] = {}
    for instruction in inner.instructions.values():
        for operand in instruction.operands:
            users.setdefault(operand, []).append(instruction)
    parameters = inner.parameters
    roots = [inner.instructions[inner.root]]
    if roots[0].opcode == "tuple":
        roots = [inner.instructions[name] for name in roots[0].operands]
    roots = [_without_bitcasts(inner, root) for root in roots]
    traffic = []
    for number, operand in enumerate(read):
        name = parameters.get(number)
        whole = operand.arrays[0] if operand.arrays else None
        if whole is None:
            continue
        parts = [] if name is None else _slices(users, name)
        if parts is None:
            traffic.append((whole, 1.0))
            continue
        traffic += [(_part_of(whole, part), 1.0) for part in parts]
    for root, result in zip(roots, one.arrays, strict=False):
        if root.opcode == "dynamic-update-slice":
            update = inner.instructions[root.operands[1]].arrays[0]
            result = _part_of(result, update)
        traffic.append((result, 1.0))
    return traffic


def _without_bitcasts(inner: Computation, one: Instruction) -> Instruction:
    while one.opcode == "bitcast":
        one = inner.instructions[one.operands[0]]
    return one


def _slices(users: dict[str, list[Instruction]], name: str) -> list[Array] | None:
    """The slices that are all that is read of a parameter; None if it is read whole."""
    parts: list[Array] = []
    for user in users.get(name, ()):
        if user.opcode == "bitcast":
            below = _slices(users, user.name)
            if below is None:
                return None
            parts += below
        elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            parts.append(user.arrays[0])
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # overwritten in place, not read
        else:
            return None
    return parts


def _part_of(whole: Array, part: Array) -> Array:
    """An array of the part's size where the whole lies."""
    return dataclasses.replace(part, space=whole.space)


# ---------------------------------------------------------------- trips


def _trips(module: Module, loop: Instruction, start: dict[int, int]) -> int | None:
    """How often a loop of a counter turns: its condition compares the counter with a constant."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if stated:
        return int(stated[1])
    condition = module.computations[loop.called("condition") or ""]
    body = module.computations[loop.called("body") or ""]
    sides = _comparison(module, condition, {0: ("tuple", 0)})
    if sides is None:
        return None
    (left, right), direction = sides
    for counter, limit, way in ((left, right, direction), (right, left, _FLIPPED[direction])):
        step = _step(module, body, counter[1]) if counter[0] == "element" else None
        if step:
            last = limit[1] if limit[0] == "number" else start.get(limit[1])
            return _turns(start.get(counter[1]), last, step, way)
    return None


_FLIPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}


def _turns(first: int | None, limit: int | None, step: int, direction: str) -> int | None:
    """How many values a counter takes from the first one until it no longer compares so."""
    if first is None or limit is None or direction == "EQ":
        return None
    if direction != "NE" and (direction in ("LT", "LE")) != (step > 0):
        return None
    distance = limit - first
    if direction in ("LE", "GE"):
        distance += 1 if step > 0 else -1
    return max(0, math.ceil(distance / step))


def _comparison(module: Module, computation: Computation, inputs: dict[int, tuple[str, int]]):
    """The two sides and the direction of the comparison that a computation returns.

    A side is ("number", value) or ("element", place in the loop's tuple).
    """
    root = computation.instructions[computation.root]
    while root.opcode in ("bitcast", "copy", "convert"):
        root = computation.instructions[root.operands[0]]
    if root.opcode == "fusion":
        inner = module.computations[root.called("calls") or ""]
        values = [_value(module, computation, name, inputs) for name in root.operands]
        given = {number: value for number, value in enumerate(values) if value is not None}
        return _comparison(module, inner, given)
    if root.opcode != "compare":
        return None
    sides = [_value(module, computation, name, inputs) for name in root.operands]
    direction = re.search(r"direction=(\w+)", root.attributes)
    if None in sides or direction is None:
        return None
    return sides, direction[1]


def _value(module: Module, computation: Computation, name: str, inputs) -> tuple[str, int] | None:
    one = computation.instructions[name]
    if one.opcode == "constant":
        return ("number", int(one.literal)) if re.fullmatch(r"-?\d+", one.literal) else None
    if one.opcode == "parameter":
        return inputs.get(int(one.literal))
    if one.opcode == "get-tuple-element":
        of = _value(module, computation, one.operands[0], inputs)
        place = re.search(r"index=(\d+)", one.attributes)
        return ("element", int(place[1])) if of and of[0] == "tuple" and place else None
    if one.opcode in ("bitcast", "copy", "convert", "reshape"):
        return _value(module, computation, one.operands[0], inputs)
    return None


def _step(module: Module, body: Computation, counter: int) -> int | None:
    """What one turn adds to an element of the loop's tuple."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    return _increment(module, body, root.operands[counter], {0: ("tuple", 0)}, counter)


def _increment(module, computation, name, inputs, counter) -> int | None:
    one = computation.instructions[name]
    if one.opcode in ("bitcast", "copy", "convert"):
        return _increment(module, computation, one.operands[0], inputs, counter)
    if one.opcode == "get-tuple-element":
        place = int(re.search(r"index=(\d+)", one.attributes)[1])
        fused = computation.instructions[one.operands[0]]
        if fused.opcode == "fusion":
            return _fused_increment(module, computation, fused, inputs, counter, place)
        return None
    if one.opcode == "fusion":
        return _fused_increment(module, computation, one, inputs, counter, None)
    if one.opcode not in ("add", "subtract"):
        return None
    sides = [_value(module, computation, operand, inputs) for operand in one.operands]
    numbers = [side[1] for side in sides if side and side[0] == "number"]
    if ("element", counter) not in sides or not numbers:
        return None
    return numbers[0] if one.opcode == "add" else -numbers[0]


def _fused_increment(module, computation, fused, inputs, counter, place) -> int | None:
    inner = module.computations[fused.called("calls") or ""]
    values = [_value(module, computation, operand, inputs) for operand in fused.operands]
    given = {number: value for number, value in enumerate(values) if value is not None}
    root = inner.instructions[inner.root]
    name = inner.root if place is None else root.operands[place]
    return _increment(module, inner, name, given, counter)


def _tuple_constants(
    module: Module, computation: Computation, name: str, known: dict[int, int]
) -> dict[int, int]:
    """Place → value of the elements of a tuple that are constants.

    Args:
        known: constants among the elements of the computation's own tuple, inside another loop.
    """
    one = computation.instructions[name]
    while one.opcode in ("copy", "bitcast", "opt-barrier"):
        one = computation.instructions[one.operands[0]]
    if one.opcode != "tuple":
        return {}
    constants = {}
    for place, operand in enumerate(one.operands):
        value = _value(module, computation, operand, {0: ("tuple", 0)})
        if value is None:
            continue
        if value[0] == "number":
            constants[place] = value[1]
        elif value[0] == "element" and value[1] in known:
            constants[place] = known[value[1]]
    return constants


def _unchanged(body: Computation, start: dict[int, int]) -> dict[int, int]:
    """Those constants of a loop's tuple that its body hands on as they are."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return {}
    kept = {}
    for place, value in start.items():
        one = body.instructions[root.operands[place]]
        index = re.search(r"index=(\d+)", one.attributes)
        if one.opcode == "get-tuple-element" and index and int(index[1]) == place:
            kept[place] = value
    return kept
