"""The page of `unseg-jax serve`: drop pictures into a browser, look at what is found, download it.

`sessions` holds the uploads, `work` segments them one job at a time, `job_results` makes what
is shown and downloaded, `server` answers requests, and `templates` is the page itself.
"""
