import type { NextConfig } from "next";

const config: NextConfig = {
  // The client around it has a lock file, too: this is where the application begins.
  turbopack: { root: import.meta.dirname },
};

export default config;
