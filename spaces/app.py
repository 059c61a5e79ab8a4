from ccnet_hf.demo import main


raise SystemExit(main(["--model_name_or_path", "checkpoint"]))
