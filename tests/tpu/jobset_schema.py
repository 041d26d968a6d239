"""What a JobSet of ours must look like, as a JSON schema; written from the API's reference."""

from __future__ import annotations

from typing import Any


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
LABEL = {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"}

POD_FAILURE_RULE = _object(
    {"action": {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]}},
    {
        "onExitCodes": _object(
            {
                "containerName": LABEL,
                "operator": {"enum": ["In", "NotIn"]},
                # With In, Kubernetes refuses 0.
                "values": _list({"type": "integer", "minimum": 1, "maximum": 255}, minItems=1),
            }
        ),
        "onPodConditions": _list(_object({"type": TEXT}, {"status": {"enum": ["True", "False"]}})),
    },
) | {"oneOf": [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}]}

JOBSET_FAILURE_RULE = _object(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "action": {
            "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"],
        },
    },
    {
        "onJobFailureReasons": _list(
            {
                "enum": [
                    "BackoffLimitExceeded",
                    "DeadlineExceeded",
                    "FailedIndexes",
                    "MaxFailedIndexesExceeded",
                    "PodFailurePolicy",
                ]
            }
        ),
        "onJobFailureMessagePatterns": _list(TEXT),
        "targetReplicatedJobs": _list(LABEL),
    },
)

ANNOTATIONS = {"type": "object", "additionalProperties": {"type": "string"}}
CLAIM = _object({"name": LABEL, "persistentVolumeClaim": _object({"claimName": LABEL})})
# As in GKE's guide to ephemeral volumes; host networks need hostNetworkPodKSA.
BUCKET = _object(
    {
        "name": LABEL,
        "csi": _object(
            {
                "driver": {"const": "gcsfuse.csi.storage.gke.io"},
                "volumeAttributes": _object(
                    {
                        "bucketName": TEXT,
                        "mountOptions": TEXT,
                        "hostNetworkPodKSA": {"const": "true"},
                    }
                ),
            }
        ),
    }
)

CONTAINER = _object(
    {
        "name": LABEL,
        "image": TEXT,
        "command": _list(TEXT, minItems=1),
        "args": _list({"type": "string"}),
        "env": _list(_object({"name": TEXT, "value": {"type": "string"}})),
        "resources": _object({"limits": _object({"google.com/tpu": {"enum": [1, 4, 8]}})}),
    },
    {"volumeMounts": _list(_object({"name": LABEL, "mountPath": TEXT}))},
)

POD = _object(
    {
        # Anything else would make the pod failure policy invalid.
        "restartPolicy": {"const": "Never"},
        "terminationGracePeriodSeconds": {"const": 60},
        "hostNetwork": {"const": True},
        "dnsPolicy": {"const": "ClusterFirstWithHostNet"},
        "serviceAccountName": TEXT,
        "nodeSelector": TEXTS
        | {
            "required": [
                "cloud.google.com/gke-tpu-accelerator",
                "cloud.google.com/gke-tpu-topology",
            ]
        },
        "containers": _list(CONTAINER, minItems=1, maxItems=1),
    },
    {
        "tolerations": _list(
            _object({"key": TEXT, "operator": {"const": "Exists"}, "effect": TEXT})
        ),
        "volumes": _list({"oneOf": [CLAIM, BUCKET]}),
    },
)

JOB = _object(
    {
        "completionMode": {"const": "Indexed"},
        "parallelism": COUNT,
        "completions": COUNT,
        "backoffLimit": {"const": 0},
        "podFailurePolicy": _object({"rules": _list(POD_FAILURE_RULE, minItems=1, maxItems=20)}),
        "template": _object(
            {"metadata": _object({"annotations": ANNOTATIONS}), "spec": POD},
        ),
    }
)

JOBSET = _object(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": _object({"name": LABEL}, {"annotations": TEXTS, "labels": TEXTS}),
        "spec": _object(
            {
                "network": _object(
                    {
                        "enableDNSHostnames": {"const": True},
                        "publishNotReadyAddresses": {"const": True},
                    }
                ),
                "failurePolicy": _object(
                    {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
                        "rules": _list(JOBSET_FAILURE_RULE, minItems=1),
                    }
                ),
                "replicatedJobs": _list(
                    _object({"name": LABEL, "replicas": COUNT, "template": _object({"spec": JOB})}),
                    minItems=1,
                ),
            }
        ),
    }
)
