"""Score a CCNet on a split: `scripts/eval.py --model_name_or_path M --dataset_name D --split validation`."""

from ccnet_hf.evaluation.eval_arguments import main


if __name__ == "__main__":
    raise SystemExit(main())
