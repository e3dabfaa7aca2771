"""Which function checks which point, and why nothing checks the others. Every check is a function of `Evidence`."""

from collections.abc import Callable

from macadam.governance.checks import data_checks, model_checks, operation_checks, organisation_checks
from macadam.governance.evidence import Evidence
from macadam.governance.types import Finding

Check = Callable[[Evidence], Finding]

CHECKS: dict[str, Check] = {
    "01": organisation_checks.registered,
    "03": organisation_checks.impact_assessed,
    "04": organisation_checks.responsible,
    "06": organisation_checks.policy_in_force,
    "07": data_checks.described,
    "09": data_checks.contract_ran,
    "14": model_checks.run_recorded,
    "19": model_checks.thresholds_first,
    "20": model_checks.accuracy_declared,
    "26": model_checks.independent_validator,
    "27": model_checks.approved,
    "34": operation_checks.receipts_equal_answers,
    "35": operation_checks.predictions_trace,
    "40": organisation_checks.deny_by_default,
    "42": operation_checks.log_consistent,
}

# Point → why nothing checks it. A point leaves this table when a check for it, and a fault it must catch, exist.
UNCHECKED: dict[str, str] = {
    "02": "Projects have no risk register yet.",
    "05": "The environment's packages are recorded with versions, but without licences and supplier ratings.",
    "08": "Preparation steps are not replayed yet.",
    "10": "Training sets are not examined for bias and gaps yet.",
    "11": "Contracts say which columns are personal; data is not scanned for others yet.",
    "12": "Erasure reaches keys, predictions and online rows, and not yet table snapshots and what was made from them.",
    "13": "Nothing is deleted by age yet, and no retention period is declared.",
    "15": "Runs are recorded well enough to be repeated, but no sampled run is repeated yet.",
    "16": "Registering signs a provenance (DSSE) that binds model, run, data and code; no sample is verified here yet.",
    "17": "Signatures are verified at load; load events are not recorded and no tampered file is probed yet.",
    "18": "Models have no bill of materials and are not scanned yet.",
    "21": "Fairness per group is not measured yet.",
    "22": "The robustness suite does not exist yet.",
    "23": "The attack suite does not exist yet.",
    "24": "Privacy tests do not exist yet.",
    "25": "Decisions are not explained yet.",
    "28": "Drills are not run and recorded yet.",
    "29": "Overrides by people cannot be recorded yet.",
    "30": "The Annex IV file is not made yet.",
    "31": "Model cards and instructions are not served yet.",
    "32": "Changes are recorded but not classified yet.",
    "33": "Models cannot be retired yet.",
    "36": "Drift and performance are not monitored yet.",
    "37": "Fairness in production is not reported yet.",
    "38": "Incidents cannot be recorded yet.",
    "39": "Complaints and appeals cannot be recorded yet.",
    "41": "Configuration is not scanned yet.",
}
