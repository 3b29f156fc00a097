"""From records to summary.json and report.html."""
