"""What two test files share: networks, arguments, servers and images that tests are made from."""
