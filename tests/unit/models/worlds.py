"""A platform with training sets in it, as the features room would leave them."""

import io
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from macadam.app.platform import Platform
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.models.rows import About, Feature, with_metadata
from macadam.values import digest_of, instant, utc_now, uuid7

ABOUT = About(
    features=(
        Feature(name="distance", kind="number"),
        Feature(name="carrier", kind="category"),
        Feature(name="noise", kind="number"),
    ),
    label="late",
    service="delay",
)
DIGEST = digest_of(b"")

TRAIN = """
from sklearn.ensemble import HistGradientBoostingClassifier

def train(run):
    data = run.data("train")
    model = HistGradientBoostingClassifier(max_iter=run.params.get("trees", 10), random_state=run.seed)
    model.fit(data.X, data.y)
    for step in range(3):
        run.log_metric("loss", 1 / (step + 1), step)
    run.save_sklearn(model)
"""


def rows(n: int, *, seed: int, start: int = 0) -> pa.Table:
    """Rows whose label depends on distance and carrier, and that no other start shares."""
    generator = np.random.default_rng(seed)
    distance = generator.normal(size=n)
    carrier = generator.choice(["AA", "B6", "UA"], n)
    chance = 1 / (1 + np.exp(-(1.5 * distance + (carrier == "AA"))))
    first = datetime(2013, 1, 1, tzinfo=UTC)
    table = pa.table(
        {
            "distance": pa.array(np.where(generator.random(n) < 0.05, None, distance), pa.float64()),
            "carrier": pa.array(carrier),
            "noise": pa.array(generator.integers(0, 9, n)),
            "label": pa.array((generator.random(n) < chance).astype(np.int8)),
            "_at": pa.array([first + timedelta(minutes=start + i) for i in range(n)], pa.timestamp("us", tz="UTC")),
            "_flight": pa.array([f"F{start + i}" for i in range(n)]),
        }
    )
    return with_metadata(table, ABOUT)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def plant(platform: Platform, name: str, table: pa.Table, *, project: str = "flights") -> str:
    """Stores a training set with its evidence and returns its reference."""
    digest = platform.ports.objects.put(parquet(table))
    ref = f"training_set:{name}@{digest[7:19]}"
    leaf = Leaf(
        id=uuid7(),
        at=instant(utc_now()),
        kind="features.build_training_set",
        outcome="done",
        actor="principal:local",
        project=project,
        subject=ref,
        uses=["table:flights@42", "views:flights@0123456789ab"],
        request=DIGEST,
        decision={"id": uuid7(), "effect": "allow", "policies": ["p"], "policy_set": DIGEST},
        body={"digest": digest, "rows": table.num_rows},
    )
    platform.ports.sql.write(lambda sql: ledger.queue(sql, leaf))
    return ref
