"""Arrays as people's tools write them: every file is read, or refused by name, row and column."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from winnow.tasks.data import rows
from winnow.tasks.data.task import bring_embeddings, bring_pseudo_labels, load
from winnow.tasks.errors import BadInput

N = 1_442  # the training part of digits
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 8)).astype(np.float32)
IDS = np.arange(N)
MIXED = RNG.permutation(N)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")


def brought(samples, path):
    return bring_embeddings(samples, str(path)).numpy("vector")


def lists(values, kind=None):
    return pa.array(list(values), type=pa.list_(pa.float32()) if kind is None else kind)


NPY = {
    "float16": X.astype(np.float16),
    "float64": X.astype(np.float64),
    "big_endian": X.astype(">f4"),
    "fortran": np.asfortranarray(X),
    "int8": np.clip(X * 40, -127, 127).astype(np.int8),
    "uint8": np.clip(X * 40 + 128, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("name", NPY)
def test_numpy_arrays_of_any_number_type_load(digits, tmp_path, name):
    np.save(tmp_path / "x.npy", NPY[name])
    vectors = brought(digits, tmp_path / "x.npy")
    np.testing.assert_array_equal(vectors, NPY[name].astype(vectors.dtype))
    assert vectors.dtype == (np.float16 if NPY[name].dtype.itemsize < 4 else np.float32)


FIXED = pa.FixedSizeListArray.from_arrays(pa.array(X[MIXED].ravel()), 8)
TABLES = {
    "list": {"id": IDS, "vector": lists(X)},
    "large_list": {"id": IDS, "vector": lists(X, pa.large_list(pa.float64()))},
    "list_of_half": {"id": IDS, "vector": lists(X.astype(np.float16), pa.list_(pa.float16()))},
    "list_of_bytes": {"id": IDS, "vector": lists(np.round(X).astype(np.int8), pa.list_(pa.int8()))},
    "no_id": {"vector": lists(X)},
    "another_name": {"clip_b32": lists(X), "id": IDS},
    "permuted": {"id": IDS[MIXED], "vector": FIXED},
    "dictionary_ids": {"id": pa.array(IDS[MIXED]).dictionary_encode(), "vector": FIXED},
    "chunks": {
        "id": pa.chunked_array([IDS[:7], IDS[7:]]),
        "vector": pa.chunked_array([lists(X[:9]), lists(X[9:])]),
    },
    "tensor": {
        "id": IDS,
        "vector": pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), (8,)),
            pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 8),
        ),
    },
}


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".arrow"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_any_layout_load(digits, tmp_path, name, suffix):
    from pyarrow import feather

    path, table = tmp_path / f"x{suffix}", pa.table(TABLES[name])
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=500)
    else:
        feather.write_feather(table, str(path))
    vectors = brought(digits, path)
    expected = {"list_of_half": X.astype(np.float16), "list_of_bytes": np.round(X)}.get(name, X)
    np.testing.assert_array_equal(vectors, expected.astype(vectors.dtype))


def test_slices_of_lists_keep_to_their_rows(digits, tmp_path):
    longer = lists(np.concatenate([np.ones((3, 8), np.float32), X]))
    pq.write_table(pa.table({"vector": longer.slice(3)}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(brought(digits, tmp_path / "x.parquet"), X)


def test_a_folder_of_parts_is_one_table(digits, tmp_path):
    folder = tmp_path / "spark.parquet"
    folder.mkdir()
    for start in (0, 900):
        rows = slice(start, start + 900)
        pq.write_table(
            pa.table({"id": IDS[rows], "vector": lists(X[rows])}), folder / f"part-{start:05}.parquet"
        )
    np.testing.assert_array_equal(brought(digits, folder), X)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_archives_are_put_in_order_by_their_ids(digits, tmp_path, suffix):
    import torch
    from safetensors.numpy import save_file

    path = tmp_path / f"named{suffix}"
    named = {"embeddings": X[MIXED], "id": IDS[MIXED]}
    if suffix == ".npz":
        np.savez(path, **named)
    elif suffix == ".pt":
        torch.save({name: torch.from_numpy(array) for name, array in named.items()}, path)
    else:
        save_file(named, path)
    np.testing.assert_array_equal(brought(digits, path), X)


def test_a_bare_tensor_and_bfloat16(digits, tmp_path):
    import torch

    torch.save(torch.from_numpy(X).bfloat16(), tmp_path / "x.pt")
    expected = torch.from_numpy(X).bfloat16().float().numpy()
    np.testing.assert_array_equal(brought(digits, tmp_path / "x.pt"), expected)


def test_a_pickle_is_not_run(digits, tmp_path):
    import torch

    class Trap:
        def __reduce__(self):
            return (print, ("trapped",))

    torch.save({"features": Trap()}, tmp_path / "x.pt")
    with pytest.raises(BadInput, match=r"x\.pt cannot be read"):
        brought(digits, tmp_path / "x.pt")


def test_text_tables(digits, tmp_path):
    header = ",".join(["id", *(f"f{i}" for i in range(8))])
    rows = np.column_stack([IDS[MIXED], X[MIXED].astype(np.float64)])
    np.savetxt(tmp_path / "x.csv", rows, delimiter=",", header=header, comments="", fmt=["%d"] + ["%.9g"] * 8)
    with pytest.raises(BadInput, match=r"It has id, f0, f1[\s\S]*x\.csv#f\*"):
        brought(digits, tmp_path / "x.csv")
    np.testing.assert_array_equal(brought(digits, f"{tmp_path}/x.csv#f*"), X)
    np.savetxt(tmp_path / "bare.tsv", X, delimiter="\t", fmt="%.9g")
    np.testing.assert_array_equal(brought(digits, tmp_path / "bare.tsv"), X)


def test_a_column_per_dimension_is_named(digits, tmp_path):
    path = tmp_path / "columns.parquet"
    pq.write_table(pa.table({"id": IDS, **{f"f{i}": X[:, i] for i in range(8)}, "note": ["a"] * N}), path)
    with pytest.raises(BadInput, match=r"which of its arrays\? It has id, f0"):
        brought(digits, path)
    np.testing.assert_array_equal(brought(digits, f"{path}#f*"), X)
    np.testing.assert_array_equal(brought(digits, f"{path}#f1,f0"), X[:, [1, 0]])
    with pytest.raises(BadInput, match=r"there is no 'g\*'"):
        brought(digits, f"{path}#g*")
    with pytest.raises(BadInput, match=r"'note' is .* not real numbers"):
        brought(digits, f"{path}#note,f0")


def test_one_of_two_arrays_is_named(digits, tmp_path):
    np.savez(tmp_path / "two.npz", a=X, b=X[:, :4])
    with pytest.raises(BadInput, match="which of its arrays"):
        brought(digits, tmp_path / "two.npz")
    np.testing.assert_array_equal(brought(digits, f"{tmp_path}/two.npz#a"), X)
    with pytest.raises(BadInput, match="there is no 'c'"):
        brought(digits, f"{tmp_path}/two.npz#c")


def test_a_url_is_read(digits):
    import io

    import fsspec

    stream = io.BytesIO()
    pq.write_table(pa.table({"id": IDS, "vector": lists(X)}), stream)
    for suffix, content in ((".parquet", stream.getvalue()), (".npy", npy(X))):
        with fsspec.open(f"memory://own/x{suffix}", "wb") as file:
            file.write(content)
        np.testing.assert_array_equal(brought(digits, f"memory://own/x{suffix}"), X)
    with pytest.raises(BadInput, match=r"memory://own/no\.npy cannot be read"):
        brought(digits, "memory://own/no.npy")


def npy(array):
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_nan(row, value=np.nan):
    broken = X.astype(np.float64)
    broken[row, 3] = value
    return broken


def parquet(**columns):
    import io

    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


REFUSED = {
    "complex.npy": (npy(X.astype(np.complex64)), "complex64, not real numbers"),
    "objects.npy": (np.array([*X, None], dtype=object)[:-1], "cannot be read: .*Python objects"),
    "a_row_short.npy": (npy(X[:-1]), "1,441 rows for 1,442 samples"),
    "one_dimension.npy": (npy(X[:, 0]), r"expected a matrix \(N, D\).*\(1442,\)"),
    "three_dimensions.npy": (npy(X[:, :, None]), r"expected a matrix \(N, D\).*\(1442, 8, 1\)"),
    "nan.npy": (npy(with_nan(7)), "row 7, column 3 is nan"),
    "huge.npy": (npy(with_nan(9, 1e300)), r"row 9, column 3 is 1e\+300, which is not a finite float32"),
    "truncated.npy": (npy(X.astype(np.float64))[:5000], "cannot be read"),
    "empty.npy": (b"", "is empty"),
    "empty.parquet": (b"", "is empty"),
    "fake.parquet": (b"PAR1junk", "cannot be read"),
    "text.npy": (b"not an array\n", "cannot be read"),
    "text.npz": (b"not an archive\n", "cannot be read"),
    "text.pt": (b"not a tensor\n", "cannot be read"),
    "text.safetensors": (b"not a tensor\n", "cannot be read"),
    "text.feather": (b"not a table\n", "cannot be read"),
    "embeddings.xls": (b"junk", r"\.xls suffix; \.npy, \.npz, \.parquet"),
    "string_ids.parquet": (
        parquet(id=[str(i) for i in IDS], vector=lists(X)),
        "ids are strings here and numbers in the dataset",
    ),
    "twice.parquet": (
        parquet(id=np.r_[0, IDS[:-1]], vector=FIXED),
        r"id 0 appears 2 times \(rows 0 and 1\); id 1441 of the dataset is missing",
    ),
    "unknown_id.parquet": (
        parquet(id=np.r_[IDS, 99_999], vector=lists(np.r_[X, X[:1]])),
        r"id 99999 \(row 1442\) is not in the dataset",
    ),
    "null.parquet": (
        parquet(id=IDS, vector=pa.array([None, *X[1:].tolist()])),
        "column 'vector', row 0 is null",
    ),
    "null_inside.parquet": (
        parquet(id=IDS, vector=pa.array([*X[:5].tolist(), [None] * 8, *X[6:].tolist()])),
        "column 'vector', row 5 holds a null",
    ),
    "ragged.parquet": (
        parquet(id=IDS, vector=pa.array([X[0, :5].tolist(), *X[1:].tolist()])),
        "row 0 has 5 numbers, others 8",
    ),
    "words.parquet": (parquet(id=IDS, vector=["a"] * N), "not real numbers"),
    "structs.parquet": (parquet(id=IDS, vector=[{"x": 1.0}] * N), "struct"),
    "no_rows.parquet": (
        parquet(id=IDS[:0], vector=lists(X[:0])),
        "expected a matrix|id 0 of the dataset is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_by_name(digits, tmp_path, name):
    content, message = REFUSED[name]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(BadInput, match=message) as raised:
        brought(digits, path)
    assert re.search(re.escape(name), str(raised.value)), "the message names the file"


def test_missing_files_and_folders(digits, tmp_path):
    with pytest.raises(BadInput, match=r"missing\.npy: no such file"):
        brought(digits, tmp_path / "missing.npy")


def test_pseudo_labels_come_in_the_same_files(digits, tmp_path):
    clusters = MIXED % 10
    pq.write_table(
        pa.table({"id": IDS[MIXED], "cluster": clusters[MIXED].astype(np.uint8)}), tmp_path / "c.parquet"
    )
    labels = bring_pseudo_labels(digits, f"{tmp_path}/c.parquet")
    np.testing.assert_array_equal(labels.numpy("cluster"), clusters)
    np.save(tmp_path / "c.npy", clusters - 1)
    with pytest.raises(BadInput, match="clusters count from 0"):
        bring_pseudo_labels(digits, f"{tmp_path}/c.npy")
    np.save(tmp_path / "f.npy", clusters * 1.0)
    with pytest.raises(BadInput, match="whole numbers"):
        bring_pseudo_labels(digits, f"{tmp_path}/f.npy")


def test_names_stand_in_for_numbers():
    """String ids are compared with the samples' paths where the samples' ids are numbers."""
    order = rows.in_order_of("x.csv", pa.array(["b.png", "a.png"]), 2, np.arange(2), ["a.png", "b.png"])
    assert order.tolist() == [1, 0]
    with pytest.raises(BadInput, match=r"id c\.png \(row 1\) is not in the dataset; id b\.png .* missing"):
        rows.in_order_of("x.csv", pa.array(["a.png", "c.png"]), 2, np.arange(2), ["a.png", "b.png"])
