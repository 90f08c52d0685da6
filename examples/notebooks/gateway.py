# %% [markdown]
# # The gateway, asked by dicomweb-client
#
# Cells are separated by `# %%`; `python examples/run.py gateway` runs it. Needs dicomweb-client.

# %%
import shutil
from pathlib import Path

from dicomweb_client.api import DICOMwebClient
from pydicom.data import get_testdata_file

from voxtier.frames import FileIndexer, FrameStore, Gateway, index_files

Path("images").mkdir(exist_ok=True)
for name in ("CT_small.dcm", "MR_small.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
    shutil.copy(get_testdata_file(name), "images")

# %%
store = FrameStore()
for _ in index_files(FileIndexer(store, source="gateway"), map(str, Path("images").iterdir())):
    pass
gateway = Gateway(store, "gateway", port=0)
gateway.start()
client = DICOMwebClient(f"{gateway.url}/dicomweb")

# %%
for study in client.search_for_studies():
    print(study["0020000D"]["Value"][0], study["00080061"]["Value"])

# %%
[instance] = client.search_for_instances(search_filters={"Modality": "CT"})
uids = [instance[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
[frame] = client.retrieve_instance_frames(*uids, frame_numbers=[1])
print(len(frame), "bytes of frame 1")

# %%
gateway.stop()
store.close()
