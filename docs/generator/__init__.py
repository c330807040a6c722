"""Reference pages out of the code, and the site out of the pages; `./run docs` calls it."""
