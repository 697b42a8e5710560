"""Operations on networks that methods rest on: cut, follow channels, resize, stitch, and scale at named sites."""
