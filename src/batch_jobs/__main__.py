"""`python -m batch_jobs` is `batch-jobs`."""

from batch_jobs.cli.main import main

main()
