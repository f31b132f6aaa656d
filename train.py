"""Trains a model.

    python train.py --config=configs/fashion_mnist.py          # embedded data, minutes on a CPU
    python train.py --config=configs/vig_b.py --config.data.path=/data/imagenet
    python train.py --config=configs/vig_t.py --config.train.batch_size=512 --workdir=runs/small

The workdir (default: runs/ and the name of the config file) gets checkpoints/, metrics.jsonl,
tensorboard/ and config.json. The same command resumes an interrupted run. All devices of the
host are used; for several hosts see --distributed in --help.
"""

if __name__ == "__mp_main__":  # a data worker, which imports this file again
    from vig_jax.cli.worker import block_jax_import

    block_jax_import()

if __name__ == "__main__":
    # Not at the top: data workers import this file again and do not need it.
    import gc

    from vig_jax.cli.worker import GC_THRESHOLDS
    from vig_jax.train.launch import main

    gc.set_threshold(*GC_THRESHOLDS)
    main()
