"""Run-time behaviour that mmengine lacks."""
