"""Data sets, their datamodules, and the transforms of a sample."""

import os
from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

# here, because it runs before any file of the package can import albumentations, which would ask the network for its
# newest version and wait for the answer
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

if TYPE_CHECKING:
    from densepred.data.camvid import CamVid as CamVid
    from densepred.data.camvid import CamVidDataModule as CamVidDataModule
    from densepred.data.cell_borders import border_weights as border_weights
    from densepred.data.collate import Collate as Collate
    from densepred.data.datamodule import DenseDataModule as DenseDataModule
    from densepred.data.dataset import DenseDataset as DenseDataset
    from densepred.data.folder import FolderDataModule as FolderDataModule
    from densepred.data.folder_dataset import FolderDataset as FolderDataset
    from densepred.data.isbi import ISBI2012 as ISBI2012
    from densepred.data.isbi import ISBIDataModule as ISBIDataModule
    from densepred.data.normals_source import NormalsFromDepth as NormalsFromDepth
    from densepred.data.normals_source import NormalsFromFiles as NormalsFromFiles
    from densepred.data.nyu import NYUDepthV2 as NYUDepthV2
    from densepred.data.nyu import NYUDepthV2DataModule as NYUDepthV2DataModule
    from densepred.data.room_rays import RoomRays as RoomRays
    from densepred.data.room_rays import RoomRaysDataModule as RoomRaysDataModule
    from densepred.data.rooms import Rooms as Rooms
    from densepred.data.rooms import RoomsDataModule as RoomsDataModule
    from densepred.data.sampler import EpochSampler as EpochSampler
    from densepred.data.sampler import EvaluationSampler as EvaluationSampler
    from densepred.data.transforms import SampleTransforms as SampleTransforms
    from densepred.data.voc import PascalVOC as PascalVOC
    from densepred.data.voc import PascalVOCDataModule as PascalVOCDataModule

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "CamVid": "camvid",
        "CamVidDataModule": "camvid",
        "Collate": "collate",
        "DenseDataModule": "datamodule",
        "DenseDataset": "dataset",
        "EpochSampler": "sampler",
        "EvaluationSampler": "sampler",
        "FolderDataModule": "folder",
        "FolderDataset": "folder_dataset",
        "ISBI2012": "isbi",
        "ISBIDataModule": "isbi",
        "NYUDepthV2": "nyu",
        "NYUDepthV2DataModule": "nyu",
        "NormalsFromDepth": "normals_source",
        "NormalsFromFiles": "normals_source",
        "PascalVOC": "voc",
        "PascalVOCDataModule": "voc",
        "RoomRays": "room_rays",
        "RoomRaysDataModule": "room_rays",
        "Rooms": "rooms",
        "RoomsDataModule": "rooms",
        "SampleTransforms": "transforms",
        "border_weights": "cell_borders",
    },
)
