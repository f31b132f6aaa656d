"""What every operator of the library needs: choosing an implementation."""
