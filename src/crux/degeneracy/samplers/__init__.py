"""Samplers behind one interface, one a file: SGLD, RMSProp-SGLD, HMC, and MALA, which is HMC's single step."""
