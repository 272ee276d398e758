import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import "./desk.css";

const root = document.getElementById("desk")!;
createRoot(root).render(
  <StrictMode>
    <App sockets={root.dataset["sockets"]!} />
  </StrictMode>,
);
