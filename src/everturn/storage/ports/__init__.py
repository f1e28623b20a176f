"""The promises engines keep. Keep ports small: each verb is written once per engine."""
