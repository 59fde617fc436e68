"""Reads back what experiment trackers were given, from their own files."""

import json
import struct
from collections import defaultdict


def tensorboard(storage, out):
    """By run, its scalars and texts: {folder: {tag: [(step, value)]}}."""
    from tensorboardX.proto.event_pb2 import Event

    runs = {}
    for folder in sorted(path for path in out.glob("tensorboard*") if path.is_dir()):
        tags = runs[folder.name] = defaultdict(list)
        for path in sorted(folder.glob("events*")):
            data = path.read_bytes()
            while data:  # TFRecord: length, its checksum, the event, its checksum
                (length,) = struct.unpack("<Q", data[:8])
                event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
                for value in event.summary.value:
                    text = value.tensor.string_val
                    tags[value.tag.removesuffix("/text_summary")].append(
                        (event.step, text[0].decode() if text else value.simple_value)
                    )
    return runs


def mlflow(storage, out):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    runs = {}
    for run in client.search_runs([client.get_experiment_by_name("loray").experiment_id]):
        tags = runs[run.data.tags["loray.run"]] = {"state": [run.info.status], "r": [run.data.params["lora.r"]]}
        for name in run.data.metrics:
            tags[name] = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
    return runs


def wandb(storage, out):
    """Of the files that offline runs leave to `wandb sync`: several for one run that was opened several times."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = {}
    for path in sorted(storage.glob("wandb/offline-run-*/*.wandb")):
        tags = runs.setdefault(path.stem.removeprefix("run-"), defaultdict(list))
        for record in map(Record.FromString, _leveldb_log(path.read_bytes()[7:])):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {"_step", "_timestamp", "_runtime"}:
                tags[name].append((row["_step"], row[name]))
            if record.WhichOneof("record_type") == "stats":
                tags["of the machine"].append((record.num, "sampled"))
            for item in record.summary.update:
                if (item.key or "/".join(item.nested_key)) == "state":
                    tags["state"] = [json.loads(item.value_json)]
            for item in record.run.config.update:
                if item.key == "lora":
                    tags["r"] = [json.loads(item.value_json)["r"]]
    return runs


def _leveldb_log(data):
    """The records of a log: each in parts that cross no border of 32 KiB (after a header of 7 bytes)."""
    at, parts = 7, []
    data = b"header." + data
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def trackio(storage, out):
    from trackio.sqlite_storage import SQLiteStorage

    runs = {}
    for run in SQLiteStorage.get_runs("loray"):
        tags = runs[run] = defaultdict(list)
        for row in SQLiteStorage.get_logs("loray", run):
            for name in row.keys() - {"step", "timestamp"}:
                tags[name].append((row["step"], row[name]))
    return runs
