"""Deploy several plans for real and measure them side by side."""
