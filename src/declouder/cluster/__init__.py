"""The windows of scenes on many processes or machines, by dask.distributed (`pip install ".[cluster]"`).

    with open_cluster("local:2", pipeline) as cluster:  # in a script below `if __name__ == "__main__":`
        remove_from_scene(source, output, pipeline, options, engine=cluster.engine)

The client (this process) reads the scenes, keeps the journals and writes the outputs. It sends groups of windows to
the workers as arrays and gets the restored layers back, so workers need neither the scenes nor the model's folder:
the model travels as well, once to each worker. Groups, threads and noise are those of a run without cluster, so
pixels are too. A bounded number of groups is out at a time; the groups of a worker that dies go to others.
"""

from declouder.cluster.engine import Cluster
from declouder.cluster.opening import check_cluster_name, open_cluster, with_model
from declouder.cluster.scenes import finish_scenes

__all__ = ["Cluster", "check_cluster_name", "finish_scenes", "open_cluster", "with_model"]
