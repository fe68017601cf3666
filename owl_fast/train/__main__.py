from owl_fast.train.command import main

if __name__ == "__main__":
    raise SystemExit(main())
