"""Every layout, on small folders as its publishers write them, with the variants that exist."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rb_jax.data.importers.importing import import_dataset
from rb_jax.errors import InputError
from tests.data.edits import every, picture, put

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(seed, kind="PNG"):
    return {"bytes": picture(seed, kind), "path": f"{seed}.png"}


def table(path, columns, types=None, rows=2):
    """A Parquet file; values that are dicts make columns of pictures."""
    arrays = {}
    for name, values in columns.items():
        picked = IMAGE if any(isinstance(v, dict) for v in values) else (types or {}).get(name)
        arrays[name] = pa.array(values, picked)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path, row_group_size=rows)


def run(kind, root, out, split=None, **options):
    made = import_dataset(kind, root / "in", root / out, split, progress=False, **options)
    assert made is not None
    return made, every(root / out, made.split)


def magicbrush(start, count, **changes):
    numbers = range(start, start + count)
    return {
        "img_id": [f"{n // 2}" for n in numbers],
        "turn_index": pa.array([n % 2 + 1 for n in numbers], pa.int32()).to_pylist(),
        "source_img": [cell(n) for n in numbers],
        "mask_img": [cell(100 + n) for n in numbers],
        "instruction": [f"do {n}" for n in numbers],
        "target_img": [cell(200 + n, "JPEG") for n in numbers],
    } | changes


def test_magicbrush_tables(tmp_path):
    for n in (0, 2):
        name = f"train-{n:05d}-of-00003-abc123.parquet"
        table(tmp_path / "in/data" / name, magicbrush(5 * n, 5))
    table(tmp_path / "in/data/dev-00000-of-00001-d.parquet", magicbrush(50, 1))
    made, records = run("magicbrush", tmp_path, "out", shard_examples=4)
    assert made.notes == ["train: 1 of 3 Parquet files not found: 00001"]
    assert [s.examples for s in made.shards] == [4, 3, 3]
    assert [r.instruction for r in records] == [f"do {n}" for n in [*range(5), *range(10, 15)]]
    first = records[1]
    assert (first.id, first.turn, first.dataset) == ("0-2", 2, "magicbrush")
    assert first.source == picture(1) and first.mask == picture(101)
    assert first.target == picture(201, "JPEG")
    assert len(run("magicbrush", tmp_path, "out", "dev")[1]) == 1


def test_magicbrush_masks_may_be_null(tmp_path):
    columns = magicbrush(0, 3, mask_img=[None] * 3)
    table(tmp_path / "in/train-00000-of-00001.parquet", columns)
    assert {r.mask for r in run("magicbrush", tmp_path, "out")[1]} == {None}


def sessions(folder, captions=""):
    entries = {}
    for session in ("242", "17"):
        entries[session] = []
        for turn in (1, 2):
            source = f"{session}-input.png" if turn == 1 else f"{session}-output1.png"
            entry = {"input": source, "instruction": f"{session} turn {turn}"}
            if session == "242":
                entry |= {"output": f"{session}-output{turn}.png", "mask": f"{session}-mask1.png"}
            entries[session].append(entry)
        for n, name in enumerate(("input", "output1", "output2", "mask1")):
            put(folder / f"images/{session}/{session}-{name}.png", picture(int(session) + n))
    put(folder / "edit_sessions.json", json.dumps(entries))
    if captions:
        texts = {"242": {"242-input.png": "before", "242-output1.png": "after"}}
        put(folder / captions, json.dumps(texts))
    return entries


@pytest.mark.parametrize("captions", ["local_captions.json", "global_description.json", ""])
@pytest.mark.parametrize("inner", ["", "test"])
def test_magicbrush_sessions(tmp_path, captions, inner):
    sessions(tmp_path / "in" / inner, captions)
    made, records = run("magicbrush", tmp_path, "out", "test", shard_examples=3)
    assert [(r.id, r.turn) for r in records] == [
        ("242-1", 1),
        ("242-2", 2),
        ("17-1", 1),
        ("17-2", 2),
    ]
    assert records[1].source == records[0].target == picture(243)
    assert records[0].mask == picture(245) and records[3].target == picture(19)
    expected = ("before", "after") if captions else (None, None)
    assert (records[0].source_caption, records[0].target_caption) == expected
    assert bool(made.notes) == (not captions)


def test_magicbrush_turns_without_sessions(tmp_path):
    entries = sessions(tmp_path / "in")
    (tmp_path / "in/edit_sessions.json").unlink()
    put(tmp_path / "in/edit_turns.json", json.dumps(entries["242"]))
    assert [r.target for r in run("magicbrush", tmp_path, "out", "dev")[1]] == [
        picture(243),
        picture(244),
    ]


def emu(numbers, hashes=True, **changes):
    return {
        "instruction": [f"do {n}" for n in numbers],
        "image": [cell(n) for n in numbers],
        "task": ["style" if n % 2 else "add" for n in numbers],
        "split": ["test" for _ in numbers],
        "idx": list(numbers),
        "hash": [f"h{n}" if hashes else None for n in numbers],
        "input_caption": ["in" for _ in numbers],
        "output_caption": ["out" for _ in numbers],
    } | changes


def test_emu_edit_alone_has_no_targets(tmp_path):
    table(tmp_path / "in/data/validation-00000-of-00001-x.parquet", emu(range(3)))
    made, records = run("emu_edit", tmp_path, "out")
    assert made.targets == 0 and "no target" in made.notes[0]
    assert [r.category for r in records] == ["add", "style", "add"]
    assert records[0].target_caption == "out" and records[0].target is None


@pytest.mark.parametrize("hashes", [True, False])
def test_emu_edit_joined_with_its_swapped_edits(tmp_path, hashes):
    for split, numbers in (("validation", range(3)), ("test", range(3, 8))):
        path = tmp_path / f"in/set/data/{split}-00000-of-00001-x.parquet"
        table(path, emu(numbers, hashes), {"hash": pa.string()})
    for split, numbers in (("test", [2, 0]), ("validation", range(3, 8))):
        extra = {"edited_image": [cell(50 + n, "JPEG") for n in numbers]}
        path = tmp_path / f"in/set_generations/data/{split}-00000-of-00001-x.parquet"
        columns = emu(numbers, hashes, model=["Emu"] * len(numbers), **extra)
        table(path, columns, {"hash": pa.string()})
    made, records = run("emu_edit", tmp_path, "out")
    key = "h{}-Emu" if hashes else "idx-{}-Emu"
    assert {r.id: r.target for r in records} == {
        key.format(n): picture(50 + n, "JPEG") for n in (0, 2)
    }
    assert made.notes == ["validation: 1 of 3 instructions have no edited image"]
    assert len(run("emu_edit", tmp_path, "out", "test")[1]) == 5


def test_emu_edit_join_never_mixes(tmp_path):
    table(tmp_path / "in/a/validation-00000-of-00001.parquet", emu(range(2)))
    other = emu(range(2), instruction=["do 0", "other"], edited_image=[cell(7), cell(8)])
    table(tmp_path / "in/b/test-00000-of-00001.parquet", other)
    made, records = run("emu_edit", tmp_path, "out")
    assert [r.id for r in records] == ["h0"] and made.rejects == 1


REASONEDIT = {
    "1-Left-Right": "Left_Right_text.txt",
    "2-Relative-Size": "Size_text.txt",
    "6-Reasoning": "Reason_test.txt",
}


def reasonedit(root):
    for start, (folder, text) in enumerate(REASONEDIT.items()):
        lines = [f"{folder} {n}. CLIP: a {n}" for n in range(3)]
        put(root / folder / text, "\r\n".join(lines) + "\r\n\r\n")
        for n in range(3):
            put(root / folder / f"{n:03d}.png", picture(10 * start + n))
            put(root / folder / f"{n:03d}_mask.jpg", picture(90 + n, "JPEG"))


def test_reasonedit(tmp_path):
    reasonedit(tmp_path / "in")
    (tmp_path / "in/6-Reasoning/001_mask.jpg").unlink()
    put(tmp_path / "in/6-Reasoning/Reason_test.txt", "one\n\nthree CLIP: c\n")
    made, records = run("reasonedit", tmp_path, "out", shard_examples=2)
    assert "folders not found: 3-Mirror, 4-Color, 5-Multiple-Objects" in made.notes
    assert made.categories == {"Left-Right": 3, "Reasoning": 2, "Relative-Size": 3}
    assert records[4].instruction == "2-Relative-Size 1." and records[4].target_caption == "a 1"
    assert records[4].source == picture(11) and records[4].mask == picture(91, "JPEG")
    assert [r.instruction for r in records[6:]] == ["one", "three"]
    assert records[7].source == picture(22) and records[6].target_caption is None
    rejects = (tmp_path / "out/test.rejects.jsonl").read_text()
    assert json.loads(rejects) == {
        "file": "6-Reasoning/Reason_test.txt",
        "row": 2,
        "reason": "instruction is empty",
    }


def test_reasonedit_lines_and_pictures_must_go_together(tmp_path):
    reasonedit(tmp_path / "in")
    (tmp_path / "in/1-Left-Right/001.png").unlink()
    with pytest.raises(InputError, match=r"Left_Right_text\.txt: 3 lines and 2 PNG files"):
        run("reasonedit", tmp_path, "out")


def editworld(root, prefix="", key="instuction"):
    flat = []
    for start, group in enumerate(
        ("generated_img/group_2", "generated_img/group_10", "video_img/group_0")
    ):
        entries = {}
        for n in range(2):
            for side, seed in (("ori", 0), ("tar", 50)):
                put(root / group / f"sample{n}_{side}.png", picture(10 * start + n + seed))
            entries[f"sample{n}"] = {
                key: f"{group} {n}",
                "original_img_path": f"{prefix}{group}/sample{n}_ori.png",
                "target_img_path": f"{prefix}{group}/sample{n}_tar.png",
            }
        flat += entries.values()
        put(root / group / "img_txt.json", json.dumps(entries, indent=1))
    return flat


@pytest.mark.parametrize("key", ["instuction", "instruction"])
@pytest.mark.parametrize("prefix", ["", "./", "editworld_data_basicv0/", "data/moved/away/"])
def test_editworld_groups(tmp_path, key, prefix):
    editworld(tmp_path / "in", prefix, key)
    made, records = run("editworld", tmp_path, "out", shard_examples=4)
    assert [r.source for r in records] == [picture(n) for n in (0, 1, 10, 11, 20, 21)]
    assert [r.target for r in records] == [picture(50 + n) for n in (0, 1, 10, 11, 20, 21)]
    assert records[3].id == "generated_img/group_10/sample1"
    assert made.categories == {"generated_img": 4, "video_img": 2}
    assert made.notes == ["folder not found: human_select_img"]
    assert [s.examples for s in made.shards] == [4, 2]


def test_editworld_names_without_folders(tmp_path):
    """Paths of bare names mean the group's own pictures."""
    editworld(tmp_path / "in")
    path = tmp_path / "in/video_img/group_0/img_txt.json"
    put(path, path.read_text().replace("video_img/group_0/", "elsewhere/"))
    put(tmp_path / "in/sample9_ori.png", picture(3))
    assert run("editworld", tmp_path, "out")[1][5].source == picture(21)


def test_editworld_list(tmp_path):
    put(tmp_path / "in/train.json", json.dumps(editworld(tmp_path / "in", "set/")))
    made, records = run("editworld", tmp_path, "out", shard_examples=4)
    assert [s.examples for s in made.shards] == [4, 2] and records[5].source == picture(21)
    assert [r.id for r in records] == list("012345")


def ultraedit(numbers, **changes):
    return {
        "source_caption": ["before" for _ in numbers],
        "target_caption": ["after" for _ in numbers],
        "edit_prompt": [f"do {n}" for n in numbers],
        "idx": list(numbers),
        "source_image": [cell(n, "JPEG") for n in numbers],
        "edited_image": [cell(50 + n, "WEBP") for n in numbers],
        "edit_object": ["NONE" if n % 2 else "sky" for n in numbers],
        "mask_image": [None for _ in numbers],
        "clip_score": [0.5 for _ in numbers],
    } | changes


def test_ultraedit(tmp_path):
    for n in (0, 1, 3):
        changes = {"mask_image": [cell(9), None, None]} if n == 3 else {}
        path = tmp_path / f"in/data/FreeForm_{n}-00000-of-00001.parquet"
        table(path, ultraedit(range(3 * n, 3 * n + 3), **changes))
    made, records = run("ultraedit", tmp_path, "out")
    assert made.notes == ["FreeForm: no files numbered 2"] and made.split == "FreeForm"
    assert [r.instruction for r in records] == [f"do {n}" for n in (0, 1, 2, 3, 4, 5, 9, 10, 11)]
    assert [r.objects for r in records[:2]] == [("sky",), ()]
    assert [r.mask for r in records[5:]] == [None, picture(9), None, None]
    assert records[0].source == picture(0, "JPEG") and records[0].target == picture(50, "WEBP")
    assert len(run("ultraedit", tmp_path, "out", "FreeForm_3")[1]) == 3


@pytest.mark.parametrize("source", ["original_image", "input_image"])
@pytest.mark.parametrize("place", ["data/train-00000-of-00001-e.parquet", "train/0000.parquet"])
def test_instructpix2pix(tmp_path, source, place):
    columns = {
        "original_prompt": ["a", "b", "c"],
        source: [cell(n) for n in range(3)],
        "edit_prompt": ["x", None, "z"],
        "edited_prompt": ["A", "B", None],
        "edited_image": [cell(5 + n) for n in range(3)],
    }
    table(tmp_path / "in" / place, columns)
    made, records = run("instructpix2pix", tmp_path, "out")
    assert [(r.instruction, r.source_caption, r.target_caption) for r in records] == [
        ("x", "a", "A"),
        ("z", "c", None),
    ]
    assert records[1].target == picture(7) and made.rejects == 1
    reject = json.loads((tmp_path / "out/train.rejects.jsonl").read_text())
    assert reject == {
        "file": place,
        "row": 1,
        "reason": "edit_prompt must be a string, got NoneType",
    }


def test_pictures_of_tables_may_be_files_beside_them(tmp_path):
    put(tmp_path / "in/images/0.png", picture(4))
    put(tmp_path / "secret.png", picture(4))
    paths = ["images/0.png", "../secret.png", "/etc/passwd", "images/1.png"]
    cells = [{"bytes": None, "path": path} for path in paths]
    columns = magicbrush(0, 4, source_img=cells)
    table(tmp_path / "in/train.parquet", columns)
    made, records = run("magicbrush", tmp_path, "out")
    assert [r.source for r in records] == [picture(4)] and made.rejects == 3


def test_tables_say_what_they_lack(tmp_path):
    columns = magicbrush(0, 2)
    del columns["target_img"]
    table(tmp_path / "in/train.parquet", columns)
    with pytest.raises(
        InputError, match=r"train\.parquet: no column target_img or target_image; its"
    ):
        run("magicbrush", tmp_path, "out")
    with pytest.raises(InputError, match="no Parquet file of split 'dev'; splits here: train"):
        run("magicbrush", tmp_path, "out", "dev")
    with pytest.raises(InputError, match="no column source_image"):
        run("ultraedit", tmp_path, "out", "train")


@pytest.mark.parametrize("keep", [0, 3, 50, 0.5, 0.97])
def test_cut_off_tables(tmp_path, keep):
    path = tmp_path / "in/train.parquet"
    table(path, magicbrush(0, 9))
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(InputError, match=r"train\.parquet: .*not a whole Parquet file"):
        run("magicbrush", tmp_path, "out")
    assert not list(tmp_path.glob("out/*.array_record"))


def test_reason50k(tmp_path):
    for side, start in (("src", 0), ("tgt", 50)):
        for n in range(3):
            put(tmp_path / f"in/images/{side}/{n:06d}.png", picture(start + n))
    lines: list[dict] = [
        {
            "id": f"{n}",
            "category": "story",
            "src_image": f"images/src/{n:06d}.png",
            "tgt_image": f"images/tgt/{n:06d}.png",
            "instruction": "What if the rope were cut?",
        }
        for n in range(3)
    ]
    lines[1] |= {"objects": ["rope", " "], "target_caption": "cut"}
    lines[2] |= {"category": "magic"}
    put(tmp_path / "in/val.jsonl", "\n\n".join(map(json.dumps, lines)))
    made, records = run("reason50k", tmp_path, "out", "val")
    assert [r.id for r in records] == ["0", "1"] and made.categories == {"story": 2}
    assert [r.objects for r in records] == [("rope",), ("rope",)]
    assert records[1].source == picture(1) and records[1].target == picture(51)
    reject = json.loads((tmp_path / "out/val.rejects.jsonl").read_text())
    assert (reject["file"], reject["row"]) == ("val.jsonl", 5)


def test_folder_with_json_lines(tmp_path):
    put(tmp_path / "in/a.png", picture(1))
    put(tmp_path / "in/b.webp", picture(2, "WEBP"))
    rows = [
        {"instuction": "do", "input": "a.png", "output": "b.webp", "id": 7, "turn": 2},
        {
            "edit_prompt": "do",
            "file_name": "a.png",
            "mask": None,
            "objects": ["x"],
            "category": "c",
        },
        {"instruction": "do", "source": None, "source_image": "a.png", "input_caption": "in"},
        {"instruction": "do"},
        {"instruction": "do", "source": "a.png", "target": "none.png"},
        {"instruction": "do", "source": 3},
        {"instruction": "do", "source": "a.png", "turn": "1"},
    ]
    put(tmp_path / "in/metadata.jsonl", "\n".join(map(json.dumps, rows)))
    made, records = run("folder", tmp_path, "out")
    assert [(r.id, r.turn, r.category, r.objects) for r in records] == [
        ("7", 2, "", ()),
        ("2", 1, "c", ("x",)),
        ("3", 1, "", ()),
    ]
    assert records[0].target == picture(2, "WEBP") and records[2].source_caption == "in"
    assert made.rejects == 4 and made.targets == 1


def test_folder_with_csv(tmp_path):
    put(tmp_path / "in/a b.png", picture(1))
    text = (
        "\ufeffinstruction, source,objects,turn,target_caption\r\n"
        '"cut, the\nrope",a b.png,rope;knife,2,\r\n'
        "\r\n"
        "short,a b.png\r\n"
        '"say ""hi""",a b.png,,,done\r\n'
        "do,a b.png,,two,\r\n"
        "do,../a b.png,,,\r\n" + "x" * 200_000 + ",a b.png,,,\r\n"
        "last,a b.png,,,\r\n"
    )
    put(tmp_path / "in/train.csv", text)
    for rows in (1, 2, 100):
        made, records = run("folder", tmp_path, f"out{rows}", shard_examples=rows)
        assert [r.instruction for r in records] == ["cut, the\nrope", 'say "hi"', "last"]
        assert records[0].objects == ("rope", "knife") and records[0].turn == 2
        rejects = (tmp_path / f"out{rows}/train.rejects.jsonl").read_text().splitlines()
        assert [json.loads(r)["row"] for r in rejects] == [5, 7, 8, 9]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("reason50k", "no such manifest"),
        ("folder", "no manifest for split"),
        ("magicbrush", r"no Parquet files .*; nor is there an edit_sessions\.json"),
        ("emu_edit", "no Parquet files"),
        ("ultraedit", "no Parquet files"),
        ("instructpix2pix", "no Parquet files"),
        ("reasonedit", "none of the folders 1-Left-Right"),
        ("editworld", r"neither train\.json nor one of the folders"),
    ],
)
def test_a_folder_of_something_else(tmp_path, kind, why):
    put(tmp_path / "in/readme.txt", "hello")
    with pytest.raises(InputError, match=why):
        run(kind, tmp_path, "out")
    assert not (tmp_path / "out").exists()
