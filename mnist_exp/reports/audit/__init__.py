"""Audits of reports: claims files, and what trained runs and counted parameters say about them."""
