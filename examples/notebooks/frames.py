# %% [markdown]
# # Frames: index, explain, preload, a frame on screen
#
# Cells are separated by `# %%`: Jupyter (with jupytext), VS Code and PyCharm open this file as a notebook,
# and `python examples/run.py frames` runs it. The images are test files that pydicom's wheel brings.

# %%
import shutil
from pathlib import Path

from pydicom.data import get_testdata_file

from voxtier.frames import FileIndexer, FrameReader, FrameStore, index_files, read_frame, read_table

Path("images").mkdir(exist_ok=True)
for name in ("CT_small.dcm", "MR_small.dcm", "SC_rgb_jpeg_dcmtk.dcm", "rtplan_truncated.dcm"):
    shutil.copy(get_testdata_file(name), "images")

# %% [markdown]
# One file: where its frame lies, and how that was found. A notebook shows a table by itself.

# %%
path = "images/SC_rgb_jpeg_dcmtk.dcm"
table = read_table(path, verify="all")
table

# %%
print(table.ranges(0), table.method, read_frame(path, table, 0)[:4])

# %% [markdown]
# Many files: the index, in a PostgreSQL that voxtier runs. A file that is refused is a row with its reason.

# %%
store = FrameStore()
for reports in index_files(FileIndexer(store, source="notebook"), map(str, Path("images").iterdir())):
    for report in reports:
        print(f"{Path(report.path).name:25} {report.status:10} {report.frames} {report.error_detail or ''}")
store

# %% [markdown]
# A server's view: memory, then the index, then the file. After a restart the best go into memory first.

# %%
with FrameReader(store, "notebook", budget_bytes=64 << 20) as reader:
    reader.preload.start()
    reader.preload.wait()
    pixels = reader.frame("images/CT_small.dcm", 0)
    print(len(pixels), {tier: reader.stats()[tier] for tier in ("tier1", "tier2", "tier3")})

# %% [markdown]
# On screen, by pydicom's decoders. (Without a plotting library: a PNG.)

# %%
from voxtier.volumes.reading.pictures import encode_png, to_grey  # noqa: E402

image = read_frame("images/CT_small.dcm", read_table("images/CT_small.dcm"), 0, decode=True)
picture = encode_png(to_grey(image.T[:, ::-1]))
Path("frame.png").write_bytes(picture)

# %%
store.close()
