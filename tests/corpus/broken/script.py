from ase.build import bulk
bulk('Cu').write('x.cif')
