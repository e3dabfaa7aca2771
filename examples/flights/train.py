"""Trains the delay model: gradient boosted trees on January to April, their number chosen on May. June is never seen here.

`run.data` gives float32 values, and the trees are trained on them as they are: then the ONNX model that answers in
production branches exactly as this one does.
"""

import copy

from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

from macadam.models.training import TrainingData, TrainingRun

STEP = 50  # trees between two looks at the tune split
PATIENCE = 2  # looks without a gain before it stops
SCHEDULE = {"departure_minute", "weekday", "arrival_minute", "distance", "carrier", "origin", "dest"}


def train(run: TrainingRun) -> None:
    fitted, tune = run.data("train"), run.data("tune")
    params = dict(run.params)
    if params.pop("columns", "all") == "schedule":  # a baseline: what the timetable alone can tell
        hide_all_but(SCHEDULE, fitted)
        hide_all_but(SCHEDULE, tune)
    most = int(params.pop("max_iter", 400))
    model = HistGradientBoostingClassifier(**params, early_stopping=False, warm_start=True, random_state=run.seed)
    best, best_auc, waited = None, 0.0, 0
    for trees in range(STEP, most + 1, STEP):
        model.set_params(max_iter=trees).fit(fitted.X, fitted.y)  # goes on from the trees it has
        auc = roc_auc_score(tune.y, model.predict_proba(tune.X)[:, 1])
        run.log_metric("tune_roc_auc", auc, step=trees)
        print(f"{trees} trees: ROC AUC {auc:.4f} on the tune split", flush=True)
        if auc > best_auc:
            best, best_auc, waited = copy.deepcopy(model), auc, 0
        else:
            waited += 1
        if waited == PATIENCE:
            break
    run.log_metric("trees", best.n_iter_)
    run.log_metric("best_tune_roc_auc", best_auc)
    run.log_metric("best_tune_log_loss", log_loss(tune.y, best.predict_proba(tune.X)[:, 1]))
    run.save_sklearn(best)


def hide_all_but(names: set[str], data: TrainingData) -> None:
    """Makes the other columns constant, so that no tree splits on them; the model's inputs stay the same."""
    data.X[:, [column not in names for column in data.columns]] = 0
