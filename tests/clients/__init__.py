"""The clients that exist, posting to a running server: browsers, curl, shippers, proxies in front, an API tester."""
